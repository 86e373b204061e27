"""Panoptic quality, its video version and identity switches on hand cases (research golden values)."""

from __future__ import annotations

import numpy as np
import pytest

from modelkit.carriers import Instances
from modelkit.digitscape import CLASS_NAMES, Digitscape
from modelkit.metrics import PanopticQuality, count_id_switches, panoptic_array, video_panoptic_quality
from modelkit.metrics.panoptic import DIVISOR
from modelkit.rle import encode

THINGS = frozenset({1, 2})


def row(*runs: tuple[int, int, int]) -> np.ndarray:
    """(1, W) panoptic array of runs (pixels, class, number)."""
    return np.concatenate([np.full(n, label * DIVISOR + number) for n, label, number in runs])[None]


def quality_of(truth: np.ndarray, found: np.ndarray) -> PanopticQuality:
    quality = PanopticQuality(THINGS)
    quality.add(truth, found)
    return quality


def test_one_match_at_three_quarters_one_miss_and_one_extra_give_golden_numbers() -> None:
    truth = row((4, 1, 1), (4, 1, 2), (8, 0, 0))
    found = row((3, 1, 7), (1, 0, 0), (4, 0, 0), (2, 1, 8), (6, 0, 0))
    truth[0, 8:] = 5 * DIVISOR  # stuff, so that nothing is unlabelled
    scores = quality_of(truth, found).scores()
    assert (scores.things.sq, scores.things.rq, scores.things.pq) == pytest.approx((0.75, 0.5, 0.375))
    assert scores.by_class[5].pq == 0
    assert scores.all.pq == pytest.approx(0.375 / 2)


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    assert quality_of(row((2, 1, 1), (2, 5, 0)), row((4, 1, 1))).scores().by_class[1].pq == 0


def test_other_classes_and_other_numbers_are_told_apart() -> None:
    truth = row((4, 1, 1), (4, 2, 1))
    assert quality_of(truth, row((4, 2, 1), (4, 1, 1))).scores().all.pq == 0
    assert quality_of(truth, row((4, 1, 9), (4, 2, 9))).scores().all.pq == 1


def test_unlabelled_pixels_count_neither_in_the_iou_nor_as_mistakes() -> None:
    truth = row((4, 1, 1), (6, 0, 0))
    found = row((7, 1, 1), (3, 2, 1))
    scores = quality_of(truth, found).scores()
    assert scores.all.pq == 1
    assert set(scores.by_class) == {1}


def crowd(pixels: int, label: int) -> np.ndarray:
    return np.full((1, pixels), -label * DIVISOR)


def test_a_crowd_counts_in_the_union_where_void_does_not() -> None:
    """Stuff of 60 pixels, 100 predicted: the other 40 are a crowd (of any class), or nobody's."""
    found = row((100, 5, 0))
    for label in (1, 5):
        truth = np.concatenate([row((60, 5, 0)), crowd(40, label)], axis=1)
        assert quality_of(truth, found).scores().by_class[5].sq == pytest.approx(0.600)
    assert quality_of(row((60, 5, 0), (40, 0, 0)), found).scores().by_class[5].sq == 1


def test_a_crowd_excuses_finds_of_its_own_class_only_and_is_never_missed() -> None:
    truth = crowd(10, 1)
    assert quality_of(truth, row((10, 1, 1))).counts() == {}
    assert quality_of(truth, row((10, 0, 0))).counts() == {}
    assert quality_of(truth, row((10, 2, 1))).counts() == {2: (0.0, 0, 1, 0)}
    half = np.concatenate([crowd(3, 1), row((2, 0, 0), (4, 2, 1))], axis=1)  # crowd and void together excuse
    assert quality_of(half, row((9, 1, 1))).counts() == {2: (0.0, 0, 0, 1)}
    assert quality_of(half, np.where(half == 2 * DIVISOR + 1, 0, 2 * DIVISOR + 1)).counts() == {2: (0.0, 0, 1, 1)}


def random_panorama(rng: np.random.Generator, *, is_truth: bool) -> np.ndarray:
    """(24, 24) panoptic array of rectangles of four classes; a truth has crowds and void, too."""
    array = np.zeros((24, 24), np.int64)
    for number in range(1, int(rng.integers(4, 12))):
        (y0, x0), (height, width) = rng.integers(0, 20, 2), rng.integers(3, 16, 2)
        label = int(rng.integers(1, 5))
        value = label * DIVISOR + (number if label in THINGS else 0)
        array[y0 : y0 + height, x0 : x0 + width] = -value if is_truth and rng.random() < 0.25 else value
    if is_truth:
        array[:, rng.integers(0, 24, 3)] = 0
    return array


def counts_by_definition(truth: np.ndarray, found: np.ndarray) -> dict[int, tuple[float, int, int, int]]:
    """Section 4.2 as it is written, segment by segment on sets of pixels."""
    segments = {value: set(np.flatnonzero(truth == value)) for value in np.unique(truth)}
    finds = {value: set(np.flatnonzero(found == value)) for value in np.unique(found) if value}
    void = segments.pop(0, set())
    crowds = {label: set().union(*(segments[v] for v in segments if v < 0 and -v // DIVISOR == label))
              for label in range(1, 6)}  # fmt: skip
    counts: dict[int, list[float]] = {}
    matched: set[int] = set()
    for value, pixels in segments.items():
        if value < 0:
            continue
        one = counts.setdefault(int(value) // DIVISOR, [0.0, 0, 0, 0])
        for other, inside in finds.items():
            iou = len(pixels & inside) / len(pixels | (inside - void))
            if other // DIVISOR == value // DIVISOR and iou > 0.5:
                matched.add(other)
                one[0], one[1] = one[0] + iou, one[1] + 1
                break
        else:
            one[3] += 1
    for value, pixels in finds.items():
        label = int(value) // DIVISOR
        if value not in matched and len(pixels & (void | crowds[label])) / len(pixels) <= 0.5:
            counts.setdefault(label, [0.0, 0, 0, 0])[2] += 1
    return {label: tuple(one) for label, one in counts.items()}  # type: ignore[misc]


def test_random_images_with_crowds_and_void_equal_the_definition() -> None:
    rng = np.random.default_rng(0)
    seen = np.zeros(4)
    for _ in range(300):
        truth = random_panorama(rng, is_truth=True)
        near = np.where(rng.random() < 0.5, np.roll(np.abs(truth), int(rng.integers(0, 3)), axis=1), 0)
        found = np.where(near != 0, near, random_panorama(rng, is_truth=False))
        counts, wanted = quality_of(truth, found).counts(), counts_by_definition(truth, found)
        assert counts.keys() == wanted.keys()
        for label, one in wanted.items():
            assert counts[label] == pytest.approx(one)
            seen += one
    assert (seen > 100).all()  # of matches, of inventions and of misses


def test_classes_that_never_occur_are_left_out_of_the_mean_and_nothing_at_all_is_zero() -> None:
    assert quality_of(row((4, 1, 1)), row((4, 1, 1))).scores().all.pq == 1
    assert PanopticQuality(THINGS).scores().all.pq == 0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 5\)"):
        quality_of(row((4, 1, 1)), row((5, 1, 1)))


def scene_truth(num_frames: int) -> np.ndarray:
    frames = Digitscape("train", (64, 64), seed=3, dense=False).clip(1, num_frames)
    return np.stack([frame.panoptic_array(DIVISOR) for frame in frames])


def test_own_truth_against_itself_is_perfect_for_images_and_clips() -> None:
    truth = scene_truth(5)
    things = range(1, 1 + len(CLASS_NAMES))
    quality = PanopticQuality(things)
    quality.add(truth[0], truth[0])
    assert quality.scores().all.pq == quality.scores().things.pq == quality.scores().stuff.pq == 1
    windows = video_panoptic_quality([(truth, truth)], things)
    assert set(windows) == {1, 2, 3, 4}
    assert all(scores.all.pq == 1 for scores in windows.values())
    assert count_id_switches(truth, truth, things) == 0


def test_swapped_identities_cost_nothing_in_one_frame_and_everything_in_two() -> None:
    first, swapped = row((4, 1, 1), (4, 1, 2)), row((4, 1, 2), (4, 1, 1))
    truth, found = np.stack([first, first]), np.stack([first, swapped])
    windows = video_panoptic_quality([(truth, found)], THINGS, windows=(1, 2))
    assert windows[1].all.pq == 1
    assert windows[2].all.pq == 0  # tube IoU 4 / 12
    assert np.mean([scores.all.pq for scores in windows.values()]) == 0.5
    assert count_id_switches(truth, found, THINGS) == 2


def test_a_swap_in_the_second_half_of_a_clip_lowers_only_windows_that_see_it() -> None:
    first, swapped = row((4, 1, 1), (4, 1, 2), (4, 5, 0)), row((4, 1, 2), (4, 1, 1), (4, 5, 0))
    truth, found = np.stack([first] * 4), np.stack([first, first, swapped, swapped])
    windows = video_panoptic_quality([(truth, found)], THINGS)
    assert windows[1].all.pq == 1
    assert windows[2].things.pq == pytest.approx(2 / 3)  # two of three windows
    assert windows[4].things.pq == 0
    assert windows[4].stuff.pq == 1
    assert count_id_switches(truth, found, THINGS) == 2


def test_windows_of_one_frame_are_panoptic_quality() -> None:
    truth, found = scene_truth(3), scene_truth(3)
    found[:, :20] = 0
    quality = PanopticQuality(range(1, 11))
    for a, b in zip(truth, found, strict=True):
        quality.add(a, b)
    assert video_panoptic_quality([(truth, found)], range(1, 11))[1] == quality.scores()


def test_an_object_out_of_sight_that_returns_under_its_old_number_is_no_switch() -> None:
    seen, gone, other = row((4, 1, 1), (4, 5, 0)), row((8, 5, 0)), row((4, 1, 2), (4, 5, 0))
    truth = np.stack([seen, gone, seen])
    assert count_id_switches(truth, truth, THINGS) == 0
    assert count_id_switches(truth, np.stack([seen, gone, other]), THINGS) == 1


def instances(masks: list[np.ndarray], **changes: object) -> Instances:
    n = len(masks)
    fields: dict[str, object] = {
        "size_hw": masks[0].shape,
        "boxes_xyxy": np.zeros((n, 4), np.float32),
        "scores": np.ones(n, np.float32),
        "labels": np.array([1, 5][:n], np.int32),
        "rles": [encode(mask) for mask in masks],
        "is_thing": np.array([True, False][:n]),
    }
    return Instances(**{**fields, **changes})  # type: ignore[arg-type]


def test_predictions_become_arrays_by_order_or_by_track() -> None:
    left = np.zeros((2, 4), bool)
    left[:, :2] = True
    found = instances([left, ~left], track_ids=np.array([7, -1]))
    assert np.unique(panoptic_array(found)).tolist() == [DIVISOR + 1, 5 * DIVISOR]
    assert np.unique(panoptic_array(found, tracked=True)).tolist() == [DIVISOR + 8, 5 * DIVISOR]


def test_overlapping_masks_and_missing_tracks_are_refused() -> None:
    everything = np.ones((2, 4), bool)
    with pytest.raises(ValueError, match="segment 1 overlaps"):
        panoptic_array(instances([everything, everything]))
    with pytest.raises(ValueError, match="track ids"):
        panoptic_array(instances([everything]), tracked=True)
