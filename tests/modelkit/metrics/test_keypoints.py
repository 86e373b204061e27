"""OKS beside pycocotools' on random people, and by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.metrics import COCO_PERSON_SIGMAS, object_keypoint_similarity

KEYPOINTS = len(COCO_PERSON_SIGMAS)


def people(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints (count, 17, 3) some of which nobody labelled, areas and boxes xywh of objects of all sizes."""
    corners, sides = random.uniform(0, 400, (count, 2)), random.uniform(5, 200, (count, 2))
    keypoints = np.concatenate(
        [
            corners[:, None] + random.random((count, KEYPOINTS, 2)) * sides[:, None],
            random.integers(0, 3, (count, KEYPOINTS, 1)),
        ],
        axis=2,
    )
    keypoints[::4, :, 2] = 0
    return keypoints, random.uniform(0.2, 1, count) * sides.prod(1), np.concatenate([corners, sides], 1)


def by_pycocotools(found: np.ndarray, true: np.ndarray, areas: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """(n, m), found in the order of their scores, which fall."""
    common: dict[str, Any] = {"image_id": 1, "category_id": 1}
    truth = [
        {"id": k + 1, "iscrowd": 0, "area": area, "bbox": box.tolist(), "keypoints": each.ravel().tolist()}
        | {"num_keypoints": int((each[:, 2] > 0).sum())}
        | common
        for k, (each, area, box) in enumerate(zip(true, areas, boxes_xywh, strict=True))
    ]
    results = [
        {"score": 1 - k / len(found), "keypoints": each.ravel().tolist()} | common for k, each in enumerate(found)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "person"}], "annotations": truth}
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluator._prepare()
    return np.asarray(evaluator.computeOks(1, 1))


@pytest.mark.parametrize("seed", range(8))
def test_oks_equals_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    true, areas, boxes = people(random, 9)
    found = true[random.integers(0, 9, 12)] + random.normal(0, 10, (12, KEYPOINTS, 3)) * [1, 1, 0]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    ours = object_keypoint_similarity(found, true, areas, corners)
    assert ours.shape == (12, 9)
    assert ((ours > 0.05) & (ours < 0.95)).any()
    np.testing.assert_allclose(ours, by_pycocotools(found, true, areas, boxes), rtol=1e-9)


def test_a_keypoint_that_is_off_by_one_deviation_counts_by_the_normal_curve() -> None:
    true = np.array([[[10.0, 10, 2], [20, 10, 0]]])
    found = np.array([[[10.0, 10], [99, 99]], [[10 + 2 * 0.05 * 30, 10], [20, 10]]])
    oks = object_keypoint_similarity(found, true, np.array([900.0]), np.array([[0.0, 0, 30, 30]]), (0.05, 0.05))
    np.testing.assert_allclose(oks, [[1.0], [np.exp(-0.5)]])


def test_nothing_found_or_nothing_true() -> None:
    nothing = np.zeros((0, KEYPOINTS, 3))
    true, areas, boxes = people(np.random.default_rng(0), 3)
    assert object_keypoint_similarity(nothing, true, areas, boxes).shape == (0, 3)
    assert object_keypoint_similarity(true, nothing, areas[:0], boxes[:0]).shape == (3, 0)
