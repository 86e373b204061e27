"""modelkit.rle against pycocotools: the same bytes, the same numbers, for masks of every shape."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from modelkit import rle

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def coco_rle(mask: np.ndarray) -> dict[str, object]:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


@st.composite
def blocky_masks(draw: st.DrawFn) -> np.ndarray:
    """Long runs and short ones: random pixels, each blown up to a block, then cut to size."""
    height, width = draw(SIZES)
    block_h, block_w = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    seed, density = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    small = np.random.default_rng(seed).random((-(-height // block_h), -(-width // block_w))) < density
    return np.kron(small, np.ones((block_h, block_w), bool))[:height, :width]


MASKS = st.one_of(blocky_masks(), hnp.arrays(bool, SIZES))
LABEL_MAPS = hnp.arrays(np.int64, SIZES, elements=st.integers(-2, 4))


@given(MASKS)
def test_encode_writes_the_bytes_of_pycocotools_from_arrays_and_tensors(mask: np.ndarray) -> None:
    expected = coco_rle(mask)["counts"]
    assert rle.encode(mask) == expected
    assert rle.encode(np.asfortranarray(mask)) == expected
    assert rle.encode(torch.from_numpy(mask.copy())) == expected


@given(MASKS)
def test_decode_gives_the_mask_back(mask: np.ndarray) -> None:
    assert np.array_equal(rle.decode(coco_rle(mask)["counts"], mask.shape), mask)


def test_long_runs_need_every_group_of_bits() -> None:
    counts = [0, 1, 15, 16, 17, 511, 512, 513, 16383, 16384, 2**20, 3, 2**31, 1, 2**32 - 2**31 - 5, 7, 1, 2**30]
    assert rle.counts_of(rle.compress(counts)).tolist() == counts


@given(st.lists(st.integers(0, 2**32 - 1), max_size=30))
def test_compress_and_counts_of_are_inverse(counts: list[int]) -> None:
    assert rle.counts_of(rle.compress(counts)).tolist() == counts


@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=30))
def test_compress_writes_what_pycocotools_writes_from_counts(counts: list[int]) -> None:
    height = sum(counts)
    expected = coco.frPyObjects({"counts": counts, "size": [height, 1]}, height, 1)["counts"]
    assert rle.compress(counts) == expected


@pytest.mark.parametrize("damaged", [b"\xff", b"0 1", b"P", b"01\x00", b"oooooooo0"])
def test_bytes_that_are_no_run_lengths_are_refused(damaged: bytes) -> None:
    with pytest.raises(rle.RleError):
        rle.decode(damaged, (4, 4))


def test_run_lengths_of_another_canvas_are_refused() -> None:
    some = rle.encode(np.eye(4, dtype=bool))
    with pytest.raises(rle.RleError, match="cover 16 pixels"):
        rle.decode(some, (4, 5))
    with pytest.raises(rle.RleError, match="cover 16 pixels"):
        rle.iou(some, some, (5, 4))
    with pytest.raises(rle.RleError, match="pair 1"):
        rle.ious([some, some], [some, rle.encode(np.eye(5, dtype=bool))])


@given(LABEL_MAPS)
def test_a_label_map_gives_every_label_the_bytes_of_its_own_mask(label_map: np.ndarray) -> None:
    expected = {int(label): coco_rle(label_map == label)["counts"] for label in np.unique(label_map)}
    found = rle.encode_label_map(label_map)
    assert found == expected
    assert list(found) == sorted(found)
    assert rle.encode_label_map(torch.from_numpy(label_map.copy())) == expected
    assert rle.encode_label_map((label_map + 2).astype(np.uint8)) == {k + 2: v for k, v in expected.items()}


def test_a_label_map_costs_less_than_one_encoding_per_class() -> None:
    label_map = np.kron(np.random.default_rng(3).integers(0, 21, (15, 20)), np.ones((32, 32), np.int64))
    one_pass_s, per_class_s = [], []
    for _ in range(5):
        begin = time.perf_counter()
        found = rle.encode_label_map(label_map)
        middle = time.perf_counter()
        expected = {int(label): coco_rle(label_map == label)["counts"] for label in np.unique(label_map)}
        one_pass_s.append(middle - begin)
        per_class_s.append(time.perf_counter() - middle)
    assert found == expected
    assert min(one_pass_s) < min(per_class_s)


@given(LABEL_MAPS)
def test_ignored_labels_are_left_out(label_map: np.ndarray) -> None:
    everything = rle.encode_label_map(label_map)
    assert rle.encode_label_map(label_map, ignore=(0, 3)) == {k: v for k, v in everything.items() if k not in (0, 3)}


def test_label_maps_of_the_wrong_kind_are_refused() -> None:
    for wrong in (np.zeros((2, 2)), np.zeros((1, 2, 2), int), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="label_map must be"):
            rle.encode_label_map(wrong)


@given(st.lists(MASKS, max_size=5))
def test_areas_equal_pycocotools(masks: list[np.ndarray]) -> None:
    rles = [coco_rle(mask)["counts"] for mask in masks]
    assert rle.areas(rles).tolist() == [int(mask.sum()) for mask in masks]
    assert [rle.area(each) for each in rles] == [int(coco.area(coco_rle(mask))) for mask in masks]


@given(MASKS)
def test_bbox_equals_pycocotools(mask: np.ndarray) -> None:
    x, y, width, height = coco.toBbox(coco_rle(mask)).tolist()
    assert rle.bbox(coco_rle(mask)["counts"], mask.shape).tolist() == [x, y, x + width, y + height]


@given(SIZES, st.integers(0, 2**31), st.integers(0, 5))
def test_ious_equal_pycocotools(size_hw: tuple[int, int], seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((n, *size_hw)) < rng.random((n, 1, 1)) for _ in range(2))
    if n:
        a[0] = b[0] = False
    rles_a, rles_b = ([coco_rle(mask) for mask in masks] for masks in (a, b))
    expected = [float(coco.iou([one], [other], [0])[0, 0]) for one, other in zip(rles_a, rles_b, strict=True)]
    found = rle.ious([one["counts"] for one in rles_a], [other["counts"] for other in rles_b])
    assert found.tolist() == expected
    for one, other, value in zip(rles_a, rles_b, expected, strict=True):
        assert rle.iou(one["counts"], other["counts"], size_hw) == value


def test_pairs_of_different_canvases_are_compared_in_one_call() -> None:
    small, large = np.eye(3, dtype=bool), np.ones((7, 9), bool)
    pairs_a = [rle.encode(small), rle.encode(large), rle.encode(~small)]
    pairs_b = [rle.encode(small), rle.encode(np.arange(63).reshape(7, 9) < 21), rle.encode(small)]
    assert rle.ious(pairs_a, pairs_b).tolist() == [1.0, 21 / 63, 0.0]


def assert_rasterises_back(mask: np.ndarray) -> list[np.ndarray]:
    polygons = rle.to_polygons(coco_rle(mask)["counts"], mask.shape)
    if not polygons:
        assert not mask.any()
        return polygons
    drawn = coco.merge(coco.frPyObjects([p.reshape(-1).tolist() for p in polygons], *mask.shape))
    assert np.array_equal(coco.decode(drawn).astype(bool), mask)
    return polygons


@settings(max_examples=300)
@given(MASKS)
def test_polygons_rasterise_back_to_the_very_same_mask(mask: np.ndarray) -> None:
    for polygon in assert_rasterises_back(mask):
        assert polygon.shape[1] == 2
        assert len(polygon) >= 4


def test_a_ring_inside_a_ring_keeps_its_holes_and_islands() -> None:
    y, x = np.mgrid[:41, :41] - 20
    distance = np.maximum(abs(x), abs(y))
    mask = (distance % 6 < 3) & (distance < 19)
    assert len(assert_rasterises_back(mask)) == 4  # the dot and three rings, each in one piece


def test_many_holes_behind_one_another_hang_on_one_outline() -> None:
    mask = np.ones((9, 4001), bool)
    mask[4, 1:-1:2] = False
    assert len(assert_rasterises_back(mask)) == 1


def test_a_rectangle_is_its_four_corners() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    (polygon,) = rle.to_polygons(rle.encode(mask), mask.shape)
    assert sorted(map(tuple, polygon.tolist())) == [(3, 2), (3, 5), (9, 2), (9, 5)]
