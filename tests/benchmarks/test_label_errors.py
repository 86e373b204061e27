"""Planted errors are errors of their kind, and everything else stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.label_errors_data import (
    LEAST,
    MADE_UP,
    MOST,
    OBJECT_ERRORS,
    POINT_ERRORS,
    Annotation,
    plant,
    without_some,
)
from modelkit import rle
from modelkit.digitscape import Digitscape, write_label_set

SHARE = 0.2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    source = Digitscape("test", (128, 128), seed=6, dense=False)
    return write_label_set(tmp_path_factory.mktemp("scenes"), source, 20)


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def mask(each: Annotation) -> np.ndarray:
    return rle.decode(each["segmentation"]["counts"].encode(), tuple(each["segmentation"]["size"]))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_planted_masks_are_wrong_in_the_way_that_is_said_and_the_others_stay(written: list[Path]) -> None:
    before = content(written[0])
    planted = plant(before, OBJECT_ERRORS, SHARE, seed=1)
    assert before == content(written[0]) and planted == plant(before, OBJECT_ERRORS, SHARE, seed=1)
    old = {each["id"]: each for each in before["annotations"]}
    new = {each["id"]: each for each in planted.content["annotations"]}
    assert len(planted.errors) == round(SHARE * len(new)) and set(planted.errors.values()) == set(OBJECT_ERRORS)
    assert all(new[k] == old[k] for k in old.keys() - planted.errors.keys())
    for k, kind in planted.errors.items():
        each, was = new[k], old.get(k)
        x, y, width, height = each["bbox"]
        assert mask(each).sum() == each["area"] and mask(each)[int(y) : int(y + height), int(x) : int(x + width)].any()
        if kind == MADE_UP:
            assert was is None
            assert all(
                iou(mask(each), mask(one)) < 0.2 for one in before["annotations"] if one["image_id"] == each["image_id"]
            )
            continue
        assert was is not None and each["image_id"] == was["image_id"]
        assert (each["category_id"] != was["category_id"]) == (kind == "class")
        assert (iou(mask(each), mask(was)) < 0.5) == (kind != "class")


def test_planted_points_are_far_from_where_they_were(written: list[Path]) -> None:
    before = content(written[2])
    planted = plant(before, POINT_ERRORS, SHARE, seed=1)
    assert set(planted.errors.values()) == set(POINT_ERRORS)
    for each, was in zip(planted.content["annotations"], before["annotations"], strict=True):
        moved = np.array(each["keypoints"]).reshape(-1, 3) - np.array(was["keypoints"]).reshape(-1, 3)
        shares = np.linalg.norm(moved[:, :2], axis=1) / np.hypot(*was["bbox"][2:])
        wrong = np.flatnonzero(shares)
        assert len(wrong) == {"swapped": 2, "moved": 1, None: 0}[planted.errors.get(each["id"])]
        assert (shares[wrong] >= LEAST - 1e-6).all() and each["bbox"] == was["bbox"]
        assert planted.errors.get(each["id"]) != "moved" or shares[wrong] <= MOST + 1e-6


def test_what_is_left_out_is_known(written: list[Path]) -> None:
    before = content(written[0])
    rest, gone = without_some(before, SHARE, seed=0)
    assert len(gone) == round(SHARE * len(before["annotations"])) > 5
    assert sorted(each["id"] for each in [*rest["annotations"], *gone]) == [
        each["id"] for each in before["annotations"]
    ]
