from __future__ import annotations

import numpy as np
import pytest

from modelkit.rle import encode
from tasks.report.drawing import DrawnObject, colour_of, draw_objects, stuff_colour_of

GREY = np.full((60, 80, 3), 128, np.uint8)


def instance(mask: np.ndarray, **changes: object) -> DrawnObject:
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    values = {"name": "disc", "label": 0, "score": 0.9, "box_xyxy": box, "rle": encode(mask)} | changes
    return DrawnObject(**values)  # type: ignore[arg-type]


def block(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert draw_objects(GREY, [], long_side_px=640).shape == (480, 640, 3)
    assert draw_objects(np.zeros((3000, 4000, 3), np.uint8), [], long_side_px=640).shape == (480, 640, 3)
    assert draw_objects(np.zeros((10, 5, 3), np.uint8), [], long_side_px=640).shape == (80, 40, 3)


def test_a_mask_is_filled_in_its_colour_inside_and_leaves_the_rest() -> None:
    drawn = draw_objects(GREY, [instance(block(20, 40, 20, 60))], labels=False).astype(int)
    inside, outside = drawn[8 * 30, 8 * 40], drawn[8 * 10, 8 * 10]
    expected = 0.58 * 128 + 0.42 * np.array(colour_of(0))
    assert np.abs(inside - expected).max() <= 1
    assert (outside == 128).all()
    edge = drawn[8 * 30, 8 * 20 + 1]
    assert np.abs(edge - np.array(colour_of(0))).max() <= 1


def test_the_source_is_not_touched() -> None:
    image = GREY.copy()
    draw_objects(image, [instance(block(0, 60, 0, 80))])
    assert (image == 128).all()


def test_a_box_is_drawn_where_there_is_no_mask() -> None:
    drawn = draw_objects(GREY, [instance(block(20, 40, 20, 60), rle=None)], labels=False).astype(int)
    assert (drawn[8 * 30, 8 * 40] == 128).all()
    assert np.abs(drawn[8 * 20, 8 * 40] - np.array(colour_of(0))).max() <= 1


def test_small_instances_stay_visible_on_large_ones() -> None:
    large, small = instance(block(0, 60, 0, 80)), instance(block(25, 35, 35, 45), label=1)
    for order in ([large, small], [small, large]):
        drawn = draw_objects(GREY, order, labels=False).astype(int)
        over = 0.58 * (0.58 * 128 + 0.42 * np.array(colour_of(0))) + 0.42 * np.array(colour_of(1))
        assert np.abs(drawn[8 * 30, 8 * 40] - over).max() <= 2


def test_a_track_keeps_its_colour_and_classes_differ() -> None:
    mask = block(10, 20, 10, 20)
    assert instance(mask, track_id=7, label=1).colour == instance(mask, track_id=7, label=2).colour
    colours = [np.array(colour_of(number), float) for number in range(12)]
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 40


def test_the_text_names_class_track_and_score_and_of_stuff_the_class_alone() -> None:
    mask = block(10, 20, 10, 20)
    assert instance(mask).text == "disc 0.90"
    assert instance(mask, track_id=3, score=None).text == "disc #3"
    assert instance(mask, is_thing=False, name="sky").text == "sky"


def test_stuff_is_filled_in_a_quiet_colour_of_its_class_and_things_stand_out_of_it() -> None:
    sky, disc = instance(~block(20, 40, 20, 60), label=2, is_thing=False), instance(block(20, 40, 20, 60), label=2)
    for order in ([sky, disc], [disc, sky]):
        drawn = draw_objects(GREY, order, labels=False).astype(int)
        ground, thing, outline = drawn[8 * 10, 8 * 10], drawn[8 * 30, 8 * 40], drawn[8 * 30, 8 * 20 + 1]
        assert np.abs(ground - (0.45 * 128 + 0.55 * np.array(stuff_colour_of(2)))).max() <= 1
        assert np.abs(thing - (0.58 * 128 + 0.42 * np.array(colour_of(2)))).max() <= 1
        assert np.abs(outline - np.array(colour_of(2))).max() <= 1
    saturation = [max(colour) - min(colour) for colour in map(stuff_colour_of, range(30))]
    assert max(saturation) < min(max(colour) - min(colour) for colour in map(colour_of, range(30)))


def test_a_tracked_clip_keeps_the_colours_of_stuff_and_gives_each_track_its_own() -> None:
    mask = block(10, 20, 10, 20)
    assert instance(mask, label=3, is_thing=False, track_id=None).colour == stuff_colour_of(3)
    assert len({instance(mask, track_id=track).colour for track in range(40)}) == 40


def test_the_name_of_stuff_is_written_inside_of_its_region_beside_what_is_written_already() -> None:
    """White letters appear in the large part of the region, none outside, and move away from a thing's plate."""
    region = block(0, 60, 45, 80)
    sky = instance(region, name="sky", is_thing=False)
    written = (draw_objects(np.zeros_like(GREY), [sky]) == 255).all(axis=2)
    rows, columns = np.nonzero(written)
    assert len(rows) > 20
    assert 45 * 8 <= columns.min() and columns.max() < 80 * 8
    middle = instance(block(30, 34, 55, 70), name="disc", score=None)
    moved = (draw_objects(np.zeros_like(GREY), [sky, middle]) == 255).all(axis=2)
    assert moved.any() and abs(np.nonzero(moved)[0].mean() - rows.mean()) > 10
    tiny = instance(block(0, 2, 0, 2), name="sky", is_thing=False)
    assert not (draw_objects(np.zeros_like(GREY), [tiny]) == 255).all(axis=2).any()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 500), (2000, 3)])
def test_extreme_shapes_are_drawn(size_hw: tuple[int, int]) -> None:
    mask = np.ones(size_hw, bool)
    drawn = draw_objects(np.zeros((*size_hw, 3), np.uint8), [instance(mask)])
    assert drawn.ndim == 3
    assert drawn.max() > 0


def test_hundreds_of_instances_and_empty_masks_are_no_trouble() -> None:
    many = [instance(block(y, y + 2, x, x + 2), label=y) for y in range(0, 58, 4) for x in range(0, 78, 4)]
    empty = DrawnObject("none", 0, 0.5, (5.0, 5.0, 5.0, 5.0), encode(np.zeros((60, 80), bool)))
    assert draw_objects(GREY, [*many, empty]).shape == (480, 640, 3)
