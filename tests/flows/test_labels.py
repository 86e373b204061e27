"""Labels from the file to the export: ids from 0, images in the usual layout, and what was dropped is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.errors import UsageError
from infra.store import open_store
from modelkit.digitscape import Digitscape, write_dataset
from tasks.training.recipe import TrainingRecipe
from tests.flows.command import SERIAL, refused, visionmill
from tests.flows.scenes import put_scenes
from tests.tasks.training.scenes import recipe
from tests.videos import make_video

SCENES = 4


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """``annotations/instances_val.json`` beside ``val/``, category ids from 0, and one annotation without a box."""
    source = Digitscape("train", (64, 64), seed=2, dense=False)
    content = json.loads(write_dataset(tmp_path / "written", source, SCENES, image_format="png").read_text())
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "written/images").rename(tmp_path / "coco/val")
    for each in content["images"]:
        each["file_name"] = Path(each["file_name"]).name
    for each in [*content["categories"], *content["annotations"]]:
        each["id" if "name" in each else "category_id"] -= 1
    content["annotations"].append({"id": 999, "image_id": 1, "category_id": 0})
    path = tmp_path / "coco/annotations/instances_val.json"
    path.write_text(json.dumps(content))
    return path


def train_arguments(labelled: Path, tmp_path: Path) -> list[str]:
    made: TrainingRecipe = recipe()
    (tmp_path / "tiny.json").write_text(json.dumps(made.to_json()))
    options = {"--recipe": tmp_path / "tiny.json", "--steps": 2, "--ray": "none", "--evaluate": labelled}
    words = [str(word) for pair in options.items() for word in pair]
    return ["train", str(labelled), str(tmp_path / "out"), *words, "--no-prefect"]


def test_ids_from_0_go_through_training_and_come_back_in_the_export(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    assert "annotation without class or box" in refused(1, *train_arguments(labelled, tmp_path))
    said = visionmill(*train_arguments(labelled, tmp_path), "--allow-dropped", "--json")
    labels: dict[str, Any] = said.summary["labels"]
    assert labels["images"] == SCENES and labels["dropped"] == {"annotation without class or box": 1}
    assert labels["file_ids"] == {str(k + 1): k for k in range(10)}
    assert "labels dropped: 1 x annotation without class or box, the first: annotation 999" in said.stderr
    weights = said.summary["weights"]
    judged = visionmill("evaluate", weights, str(labelled), "--allow-dropped")
    assert "labels dropped: 1 x annotation without class or box, the first: annotation 999" in judged.stderr
    assert json.loads(Path(weights).with_suffix(".json").read_text())["lineage"]["file_ids"] == labels["file_ids"]
    visionmill("segment", str(labelled.parents[1] / "val"), str(tmp_path / "found"), *SERIAL,
               "--model", weights, "--score-threshold", "0.001")  # fmt: skip
    visionmill("export", str(tmp_path / "found"), str(tmp_path / "found.json"), "--to", "coco", "--min-score", "0")
    content = json.loads((tmp_path / "found.json").read_text())
    assert [each["id"] for each in content["categories"]] == list(range(10))
    assert [each["name"] for each in content["categories"]] == [str(k) for k in range(10)]


def test_missing_images_are_told_before_a_model_is_loaded(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise UsageError("a model was loaded")

    monkeypatch.setattr("tasks.evaluation.evaluate.evaluate_model", load)
    (labelled.parents[1] / "val").rename(tmp_path / "elsewhere")
    words = ["evaluate", "digitscape_mask_rcnn", str(labelled), "--allow-dropped"]
    assert f"{SCENES} of {SCENES} images that" in refused(1, *words)
    assert "a model was loaded" in refused(2, *words, "--images-root", str(tmp_path / "elsewhere"))
    assert "no such model" in refused(2, "evaluate", "no such model", *words[2:]), "which costs nothing to see"


def test_a_coco_file_is_a_source_wherever_its_images_lie(labelled: Path, tmp_path: Path) -> None:
    (labelled.parents[1] / "val").rename(tmp_path / "elsewhere")
    said = visionmill("segment", labelled, tmp_path / "out", "--images-root", tmp_path / "elsewhere", *SERIAL, "--json")
    assert said.summary["items"]["ok"] == SCENES


def test_images_frames_and_members_of_archives_lie_beside_their_labels(store_uri: str) -> None:
    store = open_store(f"{store_uri}/in")
    put_scenes(store, 2)
    names = [info.key for info in store.list()]
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture, "GIF")
    with tarfile.open(fileobj=archive, mode="w") as members:
        info = tarfile.TarInfo("deep/m.jpg")
        info.size = store.info(names[0]).size_bytes
        members.addfile(info, io.BytesIO(store.get(names[0])))
    store.put("g.gif", picture.getvalue())
    store.put("shard.tar", archive.getvalue())
    store.put("v.mp4", make_video("mp4", "libx264", frames=3))
    visionmill("segment", store.uri, f"{store_uri}/out", *SERIAL)
    said = visionmill("export", f"{store_uri}/out", f"{store_uri}/yolo", "--to", "yolo", "--images", "--json")
    found = open_store(f"{store_uri}/yolo")
    keys = {info.key for info in found.list()}
    labels = {key.removeprefix("labels/").removesuffix(".txt") for key in keys if key.startswith("labels/")}
    images = {key.removeprefix("images/").rpartition(".")[0]: key for key in keys if key.startswith("images/")}
    assert images.keys() == labels and len(labels) == 2 + 1 + 1 + 3
    assert said.summary["files"] == len(keys)
    (inside,) = (key for key in images.values() if key.endswith("m.jpg"))
    for key in (images[names[0].rpartition(".")[0]], inside):
        assert found.get(key) == store.get(names[0])  # as it was
    assert Image.open(io.BytesIO(found.get("images/g.png"))).size == (40, 30)
    assert sum(key.startswith("images/v.mp4/") and key.endswith(".jpg") for key in keys) == 3
    assert "put the images" not in found.get("data.yaml").decode()
    words = ["export", f"{store_uri}/out", f"{store_uri}/again", "--images", "--to"]
    assert "without images" in refused(2, *words, "flat")
    store.delete(names[1])
    assert "1 images could not be written beside their labels" in refused(1, *words, "yolo")
    assert len(list(open_store(f"{store_uri}/again").list("labels/"))) == len(labels)
