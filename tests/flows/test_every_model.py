"""Every registered model through the real job: a picture and a clip in, rows that verify, query and export read out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkit import VideoModel, create_model, rle
from modelkit.registry import find_model, register_variant, temporary_registrations
from tasks.product import find_product, stores
from tests.flows.command import ask, segment, visionmill
from tests.flows.scenes import write_scenes
from tests.modelkit.huggingface.transformers_models import saved
from tests.modelkit.model_tester import CASES
from tests.videos import make_video

NUM_FRAMES = 2
SMALL = "small"  # the name under which a model is registered at the size of its case
# Built by the same code as a smaller one that is tried; what is left to them is size.
_SAME_BUT_LARGER = {
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcn_resnet50",
    "fcn_resnet101",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn_v2",
    "yolact_edge_resnet50",
    "yolact_im400",
    "yolact_im700",
    "yolact_resnet50",
    "yolact_resnet50_pascal",
}
_NAMES = sorted(
    name for name in CASES.keys() - _SAME_BUT_LARGER if stores(find_product("segments"), find_model(name).kind)
)
_COLUMNS = "labels, names, scores, boxes_xyxy, areas, rles, is_thing, track_ids"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene and a short clip."""
    folder = tmp_path_factory.mktemp("source")
    write_scenes(folder, 1)
    (folder / "clip.mp4").write_bytes(make_video("mp4", "libx264", frames=NUM_FRAMES, size_hw=(48, 64)))
    return folder


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with temporary_registrations():
        yield


def through_the_job(source: Path, output: Path, *model: str) -> list[dict[str, Any]]:
    """The rows that a job left, after ``verify`` had nothing to say and the query's masks agree with its areas."""
    counts = segment(source, output, "--score-threshold", "0", *model)["items"]
    assert (counts["ok"], counts["failed"]) == (1 + NUM_FRAMES, 0)
    assert visionmill("verify", output, "--deep", "--json").summary["problems"] == []
    return ask(output, f"SELECT uri, media, frame, width, height, {_COLUMNS} FROM items ORDER BY uri, frame")


def masks_of(row: dict[str, Any]) -> np.ndarray:
    """(n, H, W) bool."""
    masks = [rle.decode(counts.encode(), (row["height"], row["width"])) for counts in row["rles"]]
    return np.array(masks, bool).reshape(-1, row["height"], row["width"])


def assert_rules(row: dict[str, Any], task: str, *, tracks: bool) -> None:
    """What the schema promises of a row, by the task of the model that made it."""
    where = (row["uri"], row["frame"])
    boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
    assert ((boxes >= 0) & (boxes <= [row["width"], row["height"]] * 2)).all(), where
    if task == "detection":
        assert row["rles"] is None, where
        assert all(row["is_thing"]), where
    else:
        masks = masks_of(row)
        assert masks.sum((1, 2)).tolist() == row["areas"], where
        if task == "instance":
            assert all(row["is_thing"]), where
        else:
            assert masks.sum(0).max(initial=0) <= 1, f"{where}: a pixel in two segments"
            assert min(row["areas"], default=1) > 0, where
            stuff = [label for label, thing in zip(row["labels"], row["is_thing"], strict=True) if not thing]
            assert len(stuff) == len(set(stuff)), f"{where}: stuff of one class is one segment"
            assert task == "panoptic" or len(stuff) == len(masks), where
    ids = row["track_ids"]
    assert (ids is not None) == tracks, where
    if tracks:
        assert [one is not None for one in ids] == row["is_thing"], where
        own = [one for one in ids if one is not None]
        assert len(own) == len(set(own)), f"{where}: an identity twice in one frame"


@pytest.mark.parametrize("name", _NAMES)
def test_a_registered_model_runs_through_the_job_and_its_rows_keep_the_rules(
    name: str, source: Path, tmp_path: Path
) -> None:
    task = find_model(name).kind
    shown = {"background": None} if task == "semantic" else {}  # an untrained map may hold nothing but background
    register_variant(SMALL, name, **CASES[name].config, **shown)
    model = create_model(SMALL)
    tracks = isinstance(model, VideoModel) and model.tracks
    rows = through_the_job(source, tmp_path / "out", "--model", SMALL, "--weights", "random:0")
    for row in rows:
        assert_rules(row, task, tracks=tracks and row["media"] == "video")
    assert any(row["labels"] for row in rows), "nothing was found, so nothing was tested"
    [counted] = ask(
        tmp_path / "out",
        "SELECT count(*) AS n, count(track_id) AS tracked, count(*) FILTER (mask_area(rle) <> area) AS wrong "
        "FROM instances",
    )
    tracked = [one for row in rows for one in row["track_ids"] or () if one is not None]
    assert counted == {"n": sum(len(row["labels"]) for row in rows), "tracked": len(tracked), "wrong": 0}
    assert bool(tracked) == tracks


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("SegformerForSemanticSegmentation", "semantic"),
        ("Mask2FormerForUniversalSegmentation", "panoptic"),
        ("DetrForSegmentation", "instance"),
    ],
)
def test_a_transformers_model_runs_through_the_job_and_its_rows_keep_the_rules(
    architecture: str, task: str, source: Path, tmp_path: Path
) -> None:
    location, _ = saved(tmp_path / "model", architecture)
    rows = through_the_job(source, tmp_path / "out", "--model", f"hf:{task}:{location}")
    for row in rows:
        assert_rules(row, task, tracks=False)
    assert any(row["labels"] for row in rows) or task == "panoptic", "nothing was found, so nothing was tested"
