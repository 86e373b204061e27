"""Labels looked at by the command line, and the recipe that comes of it: changed, trained with, taken by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.command import refused, visionmill


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Labels of four scenes."""
    output = tmp_path_factory.mktemp("scenes")
    return visionmill("digitscape", output, "--scenes", 4, "--size", 64, "--json").summary["labels"]


def test_people_read_a_table_and_programs_the_same_in_json(scenes: dict[str, str]) -> None:
    said = visionmill("inspect", scenes["instances"])
    assert "4 images in 4 groups" in said.stdout and "object sides px" in said.stdout
    assert "photographs_instance (mask_rcnn, instance)" in said.stderr
    seen = visionmill("inspect", scenes["panoptic"], "--json").summary
    assert seen["kind"] == "panoptic" and seen["images"] == 4 and seen["near_duplicates"]["count"] == 0
    assert {"image_sides_px", "objects_per_image", "classes", "suspicious", "recipe"} <= seen.keys()


def test_images_that_look_the_same_are_named_together(scenes: dict[str, str], tmp_path: Path) -> None:
    content = json.loads(Path(scenes["instances"]).read_text())
    folder = Path(scenes["instances"]).parent
    first = content["images"][0]
    copy = {**first, "id": 10_000, "file_name": "copy.png"}
    content["images"].append(copy)
    for image in content["images"]:
        source = next(folder.rglob(Path(first["file_name"] if image is copy else image["file_name"]).name))
        (tmp_path / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / image["file_name"]).write_bytes(source.read_bytes())
    (tmp_path / "labels.json").write_text(json.dumps(content))
    seen = visionmill("inspect", tmp_path / "labels.json", "--json").summary
    [group] = seen["near_duplicates"]["first"]
    assert len(group) == 2 and group[-1].endswith("copy.png") != group[0].endswith("copy.png")
    unread = visionmill("inspect", tmp_path / "labels.json", "--no-duplicates", "--json").summary
    assert unread["near_duplicates"] is None


def test_a_saved_recipe_is_changed_and_trained_with(scenes: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    seen = visionmill("inspect", scenes["instances"], "--recipe", "semantic", "--save", path, "--json").summary
    recipe = json.loads(path.read_text())
    assert recipe == seen["recipe"] and seen["kind"] == "semantic"
    recipe["batch_size"], recipe["name"] = 2, "mine"
    path.write_text(json.dumps(recipe))
    done = visionmill(
        "train", scenes["instances"], tmp_path / "out", "--recipe", path, "--steps", 1, "--ray", "none", "--no-prefect",
        "--json",
    )  # fmt: skip
    assert done.summary["model"].startswith("mine@")
    assert "tensors taken from imagenet: network.backbone" in done.stderr


def test_labels_that_are_held_out_are_judged_on_the_way_and_not_learnt_from(tmp_path: Path) -> None:
    labels = visionmill("digitscape", tmp_path / "in", "--scenes", 20, "--size", 64, "--json").summary["labels"]
    done = visionmill(
        "train", labels["instances"], tmp_path / "out", "--recipe", "semantic", "--steps", 2, "--batch-size", 2,
        "--validate-every", 1, "--ray", "none", "--no-prefect", "--json",
    )  # fmt: skip
    seen = done.summary["validation"]
    assert seen["images"] == 2 and [look["step"] for look in seen["looks"]] == [1, 2]
    assert "on 2 held-out images" in done.stderr


def test_frames_of_one_video_are_not_divided_and_are_refused_only_where_that_was_asked_for(tmp_path: Path) -> None:
    labels = visionmill("digitscape", tmp_path / "in", "--scenes", 1, "--frames", 20, "--size", 64, "--json").summary
    train = (
        "train", labels["labels"]["instances"], tmp_path / "out", "--recipe", "semantic", "--steps", 1,
        "--batch-size", 2, "--ray", "none", "--no-prefect",
    )  # fmt: skip
    assert visionmill(*train, "--json").summary["validation"] is None
    assert "cannot be divided" in refused(1, *train, "--validation", "0.1")


def test_without_a_recipe_labels_are_never_trained_by_the_wrong_kind_of_model(
    scenes: dict[str, str], tmp_path: Path
) -> None:
    done = visionmill(
        "train", scenes["panoptic"], tmp_path, "--steps", 1, "--batch-size", 1, "--ray", "none", "--no-prefect",
        "--json",
    ).summary  # fmt: skip
    assert done["model"].startswith("photographs_panoptic@")


def test_what_is_no_recipe_is_refused_with_the_ways_there_are(scenes: dict[str, str]) -> None:
    said = refused(2, "inspect", scenes["instances"], "--recipe", "nosuch")
    assert "no recipe and no model is called 'nosuch'" in said


def test_a_recipe_for_labels_of_another_kind_is_told(scenes: dict[str, str], tmp_path: Path) -> None:
    told = "the labels call for a model of kind panoptic; this recipe makes one of kind instance"
    given = ("train", scenes["panoptic"], tmp_path / "out", "--steps", 1, "--ray", "none", "--no-prefect")
    assert told in visionmill(*given, "--recipe", "digitscape").stderr
    assert visionmill("inspect", scenes["panoptic"], "--recipe", "digitscape", "--json").summary["remarks"][0] == told
    assert "call for" not in visionmill(*given, "--recipe", "digitscape_panoptic").stderr
