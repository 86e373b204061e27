"""Steadiness of masks on video: hand cases."""

from __future__ import annotations

import numpy as np
import pytest

from modelkit import rle
from modelkit.carriers import Instances
from modelkit.temporal import mean_warped_iou


def result(*squares: tuple[int, int, int, float]) -> Instances:
    """Squares of 4 x 4 pixels at (row, column) on 12 x 16, each with a label and a score."""
    masks = []
    for row, column, _, _ in squares:
        mask = np.zeros((12, 16), np.uint8)
        mask[row : row + 4, column : column + 4] = 1
        masks.append(rle.encode(mask))
    return Instances(
        size_hw=(12, 16),
        boxes_xyxy=np.zeros((len(squares), 4), np.float32),
        scores=np.array([score for *_, score in squares], np.float32),
        labels=np.array([label for _, _, label, _ in squares], np.int32),
        rles=masks,
        is_thing=np.ones(len(squares), bool),
    )


def moving(dx: float, dy: float = 0.0) -> np.ndarray:
    return np.broadcast_to(np.array([dx, dy], np.float32), (12, 16, 2))


def test_masks_that_follow_the_motion_are_steady_and_those_that_stay_behind_are_not() -> None:
    clip = [result((2, 2 + 2 * k, 1, 0.9)) for k in range(4)]
    assert mean_warped_iou(clip, [moving(2)] * 3) == 1
    assert mean_warped_iou(clip, [moving(0)] * 3) == pytest.approx(8 / 24)
    assert mean_warped_iou([result((2, 2, 1, 0.9)), result((3, 4, 1, 0.9))], [moving(2.2, 0.8)]) == 1


def test_a_mask_that_is_gone_for_a_frame_counts_as_zero_twice() -> None:
    clip = [result((2, 2, 1, 0.9)), result(), result((2, 2, 1, 0.9)), result((2, 2, 1, 0.9))]
    assert mean_warped_iou(clip, [moving(0)] * 3) == pytest.approx(1 / 3)


def test_classes_are_compared_apart_and_weak_results_left_out() -> None:
    clip = [result((2, 2, 1, 0.9), (2, 8, 2, 0.9)), result((2, 2, 1, 0.9), (2, 8, 3, 0.9), (7, 8, 1, 0.4))]
    assert mean_warped_iou(clip, [moving(0)]) == pytest.approx(1 / 3)
    split = result((2, 2, 1, 0.9), (2, 6, 1, 0.8))
    assert mean_warped_iou([split, split], [moving(0)]) == 1


def test_what_leaves_the_image_is_left_out() -> None:
    clip = [result((2, 10, 1, 0.9)), result((2, 12, 1, 0.9))]
    assert mean_warped_iou([clip[0], clip[1]], [moving(4)]) == pytest.approx(8 / 8 * 1 / 2)


def test_nothing_found_is_steady_and_a_wrong_number_of_flows_is_refused() -> None:
    assert mean_warped_iou([result(), result()], [moving(0)]) == 1
    assert mean_warped_iou([], []) == 1
    with pytest.raises(ValueError, match="flows"):
        mean_warped_iou([result(), result()], [])
