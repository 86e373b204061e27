"""Composed label sets through the command line: written, trained on by every recipe that is made for them, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.store import open_store
from tasks.labels.reading import read_label_set
from tasks.product import kinds
from tests.flows.command import refused, visionmill

RECIPES = {name: kind.name for kind in kinds().values() for name in kind.recipes if name.startswith("digitscape")}
MAIN = {
    "instance": ("mask", "ap"),
    "semantic": ("semantic", "miou"),
    "panoptic": ("panoptic", "pq"),
    "keypoints": ("box_diagonal", "auc"),
}
FINDS_SURFACES = {"digitscape_densepose_rcnn"}
TOLD_BY = {  # what comes first where a recipe's model is not judged as most of its kind are
    ("oks", "ap"): {"digitscape_keypoint_rcnn", "digitscape_retinaface", "digitscape_centernet"},
    ("box", "ap"): {"digitscape_cornernet", "digitscape_centernet_triplet"},  # without points
    ("gps", "ap"): FINDS_SURFACES,
}
TRUTH = {"panoptic": "panoptic", "keypoints": "landmarks"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Labels of four scenes."""
    output = tmp_path_factory.mktemp("scenes")
    return visionmill("digitscape", output, "--scenes", 4, "--size", 64, "--style", "hard", "--surface-points", 20,
                      "--json").summary["labels"]  # fmt: skip


def train(labels: str, output: Path, recipe: str) -> dict[str, Any]:
    return visionmill(
        "train", labels, output, "--recipe", recipe, "--steps", 1, "--batch-size", 2, "--ray", "none", "--no-prefect",
        "--evaluate", labels, "--json",
    ).summary  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"digitscape_vpsnet"}))
def test_every_recipe_trains_on_scenes_and_its_weights_are_judged(
    recipe: str, scenes: dict[str, str], tmp_path: Path
) -> None:
    kind = RECIPES[recipe]
    done = train(scenes["surfaces" if recipe in FINDS_SURFACES else TRUTH.get(kind, "instances")], tmp_path, recipe)
    assert done["model"].startswith(f"{recipe}@") and done["steps"] == 1
    group, figure = next((told for told, recipes in TOLD_BY.items() if recipe in recipes), MAIN[kind])
    assert next(iter(done["metrics"][group])) == figure and -1 <= done["metrics"][group][figure] <= 1


def test_semantic_recipes_know_no_background_where_stuff_is_labelled(scenes: dict[str, str], tmp_path: Path) -> None:
    done = train(scenes["panoptic"], tmp_path, "digitscape_fcn")
    assert "background" not in done["metrics"]["semantic"]["by_class"]


def test_vpsnet_learns_from_pairs_of_frames_and_is_judged_on_clips(tmp_path: Path) -> None:
    written = visionmill("digitscape", tmp_path / "clips", "--scenes", 2, "--frames", 3, "--size", 64, "--json").summary
    labels = read_label_set(written["labels"]["panoptic"])
    assert {(row["media"], row["frame"]) for row in labels.table.to_pylist()} == {("video", k) for k in range(3)}
    done = train(written["labels"]["panoptic"], tmp_path, "digitscape_vpsnet")
    assert done["final"]["loss_track"] >= 0
    assert {"vpq", "vpq_1", "id_switches", "tracks"} <= done["metrics"]["video"].keys()


def test_the_same_command_writes_the_same_bytes_into_a_folder_and_into_a_bucket(store_uri: str, tmp_path: Path) -> None:
    asked = ["--scenes", 2, "--split", "test", "--seed", 3, "--size", "64x96", "--image-format", "jpg"]
    for output in (store_uri, tmp_path):
        visionmill("digitscape", output, *asked)
    one, other = open_store(store_uri), open_store(str(tmp_path))
    keys = sorted(info.key for info in one.list())
    assert len([key for key in keys if key.endswith(".jpg")]) == 2
    assert all(one.get(key) == other.get(key) for key in keys)
    assert read_label_set(f"{store_uri}/panoptic.json").table["height"].to_pylist() == [64, 64]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--size 20", "at least 32 a side"),
        ("--size large", "--size"),
        ("--split dev", "--split: must be 'train', 'val' or 'test', got 'dev'"),
        ("--frames 2 --size 33", "even sides"),
    ],
)
def test_what_cannot_be_composed_is_refused(words: str, problem: str, tmp_path: Path) -> None:
    assert problem in refused(2, "digitscape", tmp_path, "--scenes", "1", *words.split())
