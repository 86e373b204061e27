"""Panoptic segments of a picture from its tiles: things as objects, stuff by the tile that owns a pixel, no overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelkit import rle
from modelkit.carriers import Instances, SizeHW
from modelkit.tiling.maps import stitch
from modelkit.tiling.objects import merge_objects
from modelkit.tiling.windows import Window


def merge_segments(parts: Sequence[tuple[Window, Instances]], size_hw: SizeHW) -> Instances:
    """The segments of a picture: things, best first, then stuff by class.

    Things are merged as objects are, and the surer one has a pixel that two want. Stuff has what no thing covers; a
    pixel whose tile saw a thing that did not prevail is of no segment.

    Args:
        parts: all tiles with their segments, in pixels of the tile; those of one tile do not overlap.
        size_hw: of the picture.
    """
    things = merge_objects([(window, found.chosen(np.flatnonzero(found.is_thing))) for window, found in parts], size_hw)
    stuff = stitch([(window, found.chosen(np.flatnonzero(~found.is_thing))) for window, found in parts], size_hw)
    both = [*(things.rles or ()), *(stuff.rles or ())]
    painted = np.zeros(size_hw, np.int32)
    for place in reversed(range(len(both))):  # stuff first, then things from the least sure on
        _paint(painted, both[place], place + 1)
    rles = rle.encode_label_map(painted, ignore=(0,))
    masks, chosen = list(rles.values()), np.array(list(rles), np.int64) - 1
    return Instances(
        size_hw=size_hw,
        boxes_xyxy=rle.bboxes(masks, size_hw).astype(np.float32) if masks else np.zeros((0, 4), np.float32),
        scores=np.concatenate([things.scores, stuff.scores])[chosen],
        labels=np.concatenate([things.labels, stuff.labels])[chosen],
        rles=masks,
        is_thing=np.concatenate([things.is_thing, stuff.is_thing])[chosen],
    )


def _paint(painted: np.ndarray, mask: bytes, number: int) -> None:
    """Write a number upon the pixels of a mask; only the box around them is drawn."""
    size_hw = (painted.shape[0], painted.shape[1])
    x0, y0, x1, y1 = rle.bbox(mask, size_hw).astype(int).tolist()
    if x0 == x1:
        return
    box_hw = (y1 - y0, x1 - x0)
    inside = rle.decode(rle.moved([mask], size_hw, (-y0, -x0), box_hw)[0], box_hw)
    painted[y0:y1, x0:x1][inside] = number
