"""What was cut into tiles comes back as it was: objects, boxes, panoptic segments and maps of classes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from modelkit import ConfigError, Instances, rle
from modelkit.tiling.maps import blend, stitch
from modelkit.tiling.objects import merge_objects
from modelkit.tiling.segments import merge_segments
from modelkit.tiling.windows import Tiling, Window, domains


@dataclass(frozen=True)
class Picture:
    """A picture's truth: objects that touch but do not overlap, each in one piece, and classes of all pixels."""

    objects: np.ndarray  # (H, W), 0 is none
    classes: np.ndarray  # (H, W) of 0 .. 3
    tiling: Tiling

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.objects.shape[0], self.objects.shape[1]

    def label_of(self, number: int) -> int:
        return 1 + number % 3


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    rows, columns = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    painted = np.zeros((rows, columns), int)
    y, x = np.mgrid[:rows, :columns]
    for number in range(1, draw(st.integers(1, 9))):
        cy, cx, ry, rx = rng.integers(0, rows), rng.integers(0, columns), *rng.integers(2, 30, 2)
        painted[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = number
    objects, count = np.zeros_like(painted), 0
    for number in range(1, painted.max() + 1):
        pieces, found = ndimage.label(painted == number)
        objects[pieces > 0] = pieces[pieces > 0] + count
        count += found
    side = draw(st.integers(16, 40))
    classes = np.kron(rng.integers(0, 4, (-(-rows // 7), -(-columns // 5))), np.ones((7, 5), int))[:rows, :columns]
    return Picture(objects, classes, Tiling(side, draw(st.integers(1, side // 2))))


def things_of(objects: np.ndarray, picture: Picture) -> Instances:
    numbers = [number for number in np.unique(objects).tolist() if number]
    masks = np.stack([objects == number for number in numbers]) if numbers else np.zeros((0, *objects.shape), bool)
    return Instances.from_masks(masks, [0.9] * len(numbers), [picture.label_of(number) for number in numbers])


def cut(picture: Picture) -> list[tuple[Window, Instances]]:
    windows = picture.tiling.windows(picture.size_hw)
    return [(window, things_of(window.cut(picture.objects), picture)) for window in windows]


def as_set(found: Instances) -> set[tuple[int, bytes]]:
    assert found.rles is not None
    return set(zip(found.labels.tolist(), found.rles, strict=True))


@settings(max_examples=25, deadline=None)
@given(pictures())
def test_objects_that_were_cut_into_tiles_come_back_whole_and_once(picture: Picture) -> None:
    merged, whole = merge_objects(cut(picture), picture.size_hw), things_of(picture.objects, picture)
    assert len(merged) == len(whole)
    assert as_set(merged) == as_set(whole)
    boxes = {tuple(box) for box in whole.boxes_xyxy.tolist()}
    assert {tuple(box) for box in merged.boxes_xyxy.tolist()} == boxes


@settings(max_examples=25, deadline=None)
@given(pictures())
def test_tiles_cover_a_picture_with_the_overlap_asked_for_and_each_pixel_is_the_domain_of_one(picture: Picture) -> None:
    windows = picture.tiling.windows(picture.size_hw)
    owned = np.zeros(picture.size_hw, int)
    for window, domain in zip(windows, domains(windows), strict=True):
        assert window.common(domain) == domain
        domain.cut(owned)[:] += 1
    assert (owned == 1).all()
    assert len({window.size_hw for window in windows}) == 1
    for axis, length in enumerate(picture.size_hw):
        starts = sorted({window.corner_yx[axis] for window in windows})
        side = windows[0].size_hw[axis]
        assert starts[0] == 0 and starts[-1] + side == length
        assert all(before + side - after >= picture.tiling.overlap for before, after in itertools.pairwise(starts))


@settings(max_examples=25, deadline=None)
@given(pictures())
def test_panoptic_segments_that_were_cut_come_back_without_a_gap_or_an_overlap(picture: Picture) -> None:
    def segments(objects: np.ndarray, classes: np.ndarray) -> Instances:
        things = things_of(objects, picture)
        stuff = [(label, (classes == label) & (objects == 0)) for label in range(4)]
        present = [(4 + label, mask) for label, mask in stuff if mask.any()]
        masks = [*things.masks(), *(mask for _, mask in present)]
        labels = [*things.labels.tolist(), *(label for label, _ in present)]
        both = Instances.from_masks(np.stack(masks), [0.9] * len(masks), labels)
        return Instances(both.size_hw, both.boxes_xyxy, both.scores, both.labels, both.rles, is_thing=both.labels < 4)

    windows = picture.tiling.windows(picture.size_hw)
    parts = [(window, segments(window.cut(picture.objects), window.cut(picture.classes))) for window in windows]
    merged, whole = merge_segments(parts, picture.size_hw), segments(picture.objects, picture.classes)
    assert as_set(merged) == as_set(whole)
    assert (merged.masks().sum(0) == 1).all()
    assert merged.is_thing.tolist() == (merged.labels < 4).tolist()


@settings(max_examples=25, deadline=None)
@given(pictures())
def test_maps_of_classes_that_were_cut_come_back(picture: Picture) -> None:
    windows = picture.tiling.windows(picture.size_hw)
    tiles = []
    for window in windows:
        classes = window.cut(picture.classes)
        tiles.append((window, classes, torch.from_numpy(np.eye(4, dtype=np.float32)[classes]).permute(2, 0, 1)))
    blended = blend(tiles, windows, picture.size_hw)
    np.testing.assert_array_equal(blended.class_map, picture.classes)
    found = blended.instances(background=0)
    assert found.labels.tolist() == [label for label in np.unique(picture.classes).tolist() if label]
    np.testing.assert_allclose(found.scores, 1.0, atol=1e-6)
    regions = [
        (window, Instances.from_masks(np.stack([classes == label for label in range(4)]), [0.5] * 4, range(4)))
        for window, classes, _ in tiles
    ]
    stitched = stitch(regions, picture.size_hw)
    assert [mask.sum() for mask in stitched.masks()] == [(picture.classes == k).sum() for k in stitched.labels]
    np.testing.assert_array_equal(np.einsum("n,nhw->hw", stitched.labels, stitched.masks()), picture.classes)


def one_tile(window: Window, boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    """Filled boxes, given in pixels of the picture, as one tile sees them."""
    masks = np.zeros((len(boxes), *window.size_hw), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        top, left = window.corner_yx
        mask[max(0, int(y0) - top) : max(0, int(y1) - top), max(0, int(x0) - left) : max(0, int(x1) - left)] = True
    return Instances.from_masks(masks, scores, labels)


LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 60, 100, 160)
SIZE = (100, 160)


def test_objects_that_touch_in_the_strip_stay_two_though_their_boxes_lie_within_each_other() -> None:
    above, below = [20, 10, 140, 30], [70, 30, 90, 50]
    parts = [(window, one_tile(window, [above, below], [0.9, 0.8], [1, 1])) for window in (LEFT, RIGHT)]
    merged = merge_objects(parts, SIZE)
    assert merged.boxes_xyxy.tolist() == [above, below]


def test_the_view_of_an_object_that_no_border_cuts_is_taken_with_its_own_class_and_score() -> None:
    parts = [
        (LEFT, one_tile(LEFT, [[40, 20, 80, 60]], [0.7], [3])),
        (RIGHT, one_tile(RIGHT, [[40, 22, 80, 58]], [0.95], [5])),  # what the border leaves looks like another class
    ]
    merged = merge_objects(parts, SIZE)
    assert merged.boxes_xyxy.tolist() == [[40, 20, 80, 60]]
    assert (merged.labels.tolist(), merged.scores.tolist()) == ([3], [pytest.approx(0.7)])


def test_where_borders_cut_every_view_they_are_united_under_the_class_of_most_of_the_object() -> None:
    parts = [
        (LEFT, one_tile(LEFT, [[10, 20, 100, 60]], [0.8], [3])),
        (RIGHT, one_tile(RIGHT, [[60, 20, 110, 60]], [0.9], [5])),
    ]
    merged = merge_objects(parts, SIZE)
    assert merged.boxes_xyxy.tolist() == [[10, 20, 110, 60]]
    assert rle.areas(merged.rles or [])[0] == 100 * 40
    assert (merged.labels.tolist(), merged.scores.tolist()) == ([3], [pytest.approx(0.8)])


def test_a_remnant_gives_way_to_the_object_that_another_tile_saw_whole_but_an_object_beside_it_does_not() -> None:
    whole, remnant, beside = [40, 20, 80, 60], [60, 20, 80, 28], [60, 70, 75, 90]
    parts = [
        (LEFT, one_tile(LEFT, [whole], [0.9], [3])),
        (RIGHT, one_tile(RIGHT, [remnant, beside], [0.6, 0.5], [1, 2])),
    ]
    merged = merge_objects(parts, SIZE)
    assert merged.labels.tolist() == [3, 2]


def test_boxes_without_masks_are_merged_by_the_same_rule() -> None:
    def boxes(window: Window, found: list[list[float]]) -> Instances:
        shifted = np.array(found, np.float32) - np.array([window.left, window.top] * 2, np.float32)
        n = len(found)
        return Instances(
            window.size_hw, shifted, np.full(n, 0.9, np.float32), np.ones(n, np.int32), None, np.ones(n, bool)
        )

    parts = [
        (LEFT, boxes(LEFT, [[10, 20, 100, 60], [62, 70, 98, 90]])),
        (RIGHT, boxes(RIGHT, [[60, 20, 130, 60], [62, 70, 98, 90]])),
    ]
    merged = merge_objects(parts, SIZE)
    assert merged.rles is None
    assert sorted(merged.boxes_xyxy.tolist()) == [[10, 20, 130, 60], [62, 70, 98, 90]]


def test_a_blended_pixel_is_of_the_tile_whose_border_is_farther_away_and_its_probability_between_both() -> None:
    windows = [Window(0, 0, 20, 20), Window(0, 10, 20, 30)]
    sure = {0: (0.9, 0.1), 10: (0.2, 0.8)}
    tiles = [
        (
            window,
            np.full((20, 20), int(window.left > 0)),
            torch.tensor(sure[window.left])[:, None, None].expand(2, 5, 5),
        )
        for window in windows
    ]
    blended = blend(tiles, windows, (20, 30))
    assert set(blended.class_map[:, :15].ravel().tolist()) == {0}
    assert set(blended.class_map[:, 16:].ravel().tolist()) == {1}
    assert 0.55 < blended.scores[0] < 0.9 and 0.5 < blended.scores[1] < 0.8


@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 33), (0, 0)])
def test_tiles_that_share_nothing_or_more_than_half_are_refused(side: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        Tiling(side, overlap)
