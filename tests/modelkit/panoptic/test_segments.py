"""The panoptic carrier: common instances, disjoint masks, bytes of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from modelkit.panoptic import NOT_TRACKED, PanopticMap
from modelkit.rle import decode


def some_map() -> PanopticMap:
    rng = np.random.default_rng(0)
    segment_map = np.kron(rng.integers(0, 5, (6, 9)), np.ones((7, 5), int))
    segment_map[segment_map == 4] = 1  # segment 4 has no pixel
    return PanopticMap(
        (42, 45),
        torch.from_numpy(segment_map).to(torch.int16),
        labels=torch.tensor([2, 1, 5, 4]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        is_thing=torch.tensor([True, True, False, False]),
    )


def test_masks_are_pycocotools_bytes_and_no_pixel_has_two() -> None:
    found = some_map()
    instances = found.finish()
    assert instances.labels.tolist() == [2, 1, 5]
    assert instances.is_thing.tolist() == [True, True, False]
    assert instances.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert instances.rles is not None
    for number, (rle, box) in enumerate(zip(instances.rles, instances.boxes_xyxy, strict=True), start=1):
        mask = np.asfortranarray((found.full_size() == number).astype(np.uint8))
        assert rle == coco.encode(mask)["counts"]
        x, y, width, height = coco.toBbox(coco.encode(mask)).tolist()
        assert box.tolist() == [x, y, x + width, y + height]
    covered = sum(decode(rle, found.size_hw).astype(int) for rle in instances.rles)
    assert covered.max() == 1
    assert (covered == (found.full_size() > 0)).all()


def test_a_map_of_another_size_is_stretched_by_nearest_neighbour() -> None:
    found = PanopticMap(
        (4, 8), torch.tensor([[1, 0], [0, 2]]), torch.tensor([1, 3]), torch.ones(2), torch.tensor([True, False])
    )
    instances = found.finish()
    assert instances.boxes_xyxy.tolist() == [[0, 0, 4, 2], [4, 2, 8, 4]]


@pytest.mark.parametrize("tracked", [False, True])
def test_a_map_without_segments_gives_no_instances(tracked: bool) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = PanopticMap((3, 5), torch.zeros(3, 5, dtype=torch.int16), nothing, torch.zeros(0), nothing.bool())
    instances = (found.with_track_ids(nothing) if tracked else found).finish()
    assert len(instances) == 0
    assert (instances.track_ids is not None) == tracked


def test_stuff_has_no_identity() -> None:
    instances = some_map().with_track_ids(torch.tensor([6, 3])).finish()
    assert instances.track_ids is not None
    assert instances.track_ids.tolist() == [6, 3, NOT_TRACKED]
