from __future__ import annotations

import numpy as np
import pytest

from modelkit.rle import encode
from tasks.results.drawing import DrawnInstance, colour_of, draw_instances

GREY = np.full((60, 80, 3), 128, np.uint8)


def instance(mask: np.ndarray, **changes: object) -> DrawnInstance:
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    values = {"name": "disc", "label": 0, "score": 0.9, "box_xyxy": box, "rle": encode(mask)} | changes
    return DrawnInstance(**values)  # type: ignore[arg-type]


def block(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert draw_instances(GREY, [], long_side_px=640).shape == (480, 640, 3)
    assert draw_instances(np.zeros((3000, 4000, 3), np.uint8), [], long_side_px=640).shape == (480, 640, 3)
    assert draw_instances(np.zeros((10, 5, 3), np.uint8), [], long_side_px=640).shape == (80, 40, 3)


def test_a_mask_is_filled_in_its_colour_inside_and_leaves_the_rest() -> None:
    drawn = draw_instances(GREY, [instance(block(20, 40, 20, 60))], labels=False).astype(int)
    inside, outside = drawn[8 * 30, 8 * 40], drawn[8 * 10, 8 * 10]
    expected = 0.58 * 128 + 0.42 * np.array(colour_of(0))
    assert np.abs(inside - expected).max() <= 1
    assert (outside == 128).all()
    edge = drawn[8 * 30, 8 * 20 + 1]
    assert np.abs(edge - np.array(colour_of(0))).max() <= 1


def test_the_source_is_not_touched() -> None:
    image = GREY.copy()
    draw_instances(image, [instance(block(0, 60, 0, 80))])
    assert (image == 128).all()


def test_a_box_is_drawn_where_there_is_no_mask() -> None:
    drawn = draw_instances(GREY, [instance(block(20, 40, 20, 60), rle=None)], labels=False).astype(int)
    assert (drawn[8 * 30, 8 * 40] == 128).all()
    assert np.abs(drawn[8 * 20, 8 * 40] - np.array(colour_of(0))).max() <= 1


def test_small_instances_stay_visible_on_large_ones() -> None:
    large, small = instance(block(0, 60, 0, 80)), instance(block(25, 35, 35, 45), label=1)
    for order in ([large, small], [small, large]):
        drawn = draw_instances(GREY, order, labels=False).astype(int)
        over = 0.58 * (0.58 * 128 + 0.42 * np.array(colour_of(0))) + 0.42 * np.array(colour_of(1))
        assert np.abs(drawn[8 * 30, 8 * 40] - over).max() <= 2


def test_a_track_keeps_its_colour_and_classes_differ() -> None:
    mask = block(10, 20, 10, 20)
    assert instance(mask, track_id=7, label=1).colour == instance(mask, track_id=7, label=2).colour
    colours = [np.array(colour_of(number), float) for number in range(12)]
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 40


def test_the_text_names_class_track_and_score() -> None:
    mask = block(10, 20, 10, 20)
    assert instance(mask).text == "disc 0.90"
    assert instance(mask, track_id=3, score=None).text == "disc #3"


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 500), (2000, 3)])
def test_extreme_shapes_are_drawn(size_hw: tuple[int, int]) -> None:
    mask = np.ones(size_hw, bool)
    drawn = draw_instances(np.zeros((*size_hw, 3), np.uint8), [instance(mask)])
    assert drawn.ndim == 3
    assert drawn.max() > 0


def test_hundreds_of_instances_and_empty_masks_are_no_trouble() -> None:
    many = [instance(block(y, y + 2, x, x + 2), label=y) for y in range(0, 58, 4) for x in range(0, 78, 4)]
    empty = DrawnInstance("none", 0, 0.5, (5.0, 5.0, 5.0, 5.0), encode(np.zeros((60, 80), bool)))
    assert draw_instances(GREY, [*many, empty]).shape == (480, 640, 3)
