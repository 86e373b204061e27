"""Masks of the kinds of segments as maps of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modelkit import rle
from tasks.evaluation.coco_shapes import filled_box

IGNORE = 255
"""The class of pixels that nobody labelled: no loss and no figure looks at them."""


def label_map(
    labels: Sequence[int], rles: Sequence[bytes | None], size_hw: tuple[int, int], background: int | None
) -> np.ndarray:
    """(H, W) int64: classes painted one over the other; elsewhere the background, or 255 where there is none."""
    painted = np.full(size_hw, IGNORE if background is None else background, np.int64)
    for label, mask in zip(labels, rles, strict=True):
        if mask is not None:
            painted[rle.decode(mask, size_hw)] = label
    return painted


def void_boxes(
    painted: np.ndarray, boxes_xyxy: Iterable[tuple[float, float, float, float]], background: int | None
) -> None:
    """Mark the background inside boxes as labelled by nobody, in place; objects that are painted there stay."""
    for box in boxes_xyxy:
        painted[filled_box(box, painted.shape) & (painted == background)] = IGNORE  # type: ignore[arg-type]


def truth_map(row: Mapping[str, Any], background: int | None = None) -> np.ndarray:
    """(H, W) int64 classes of one row of a label set; a crowd is of its class, 255 marks what nobody labelled."""
    truth = label_map(row["labels"], row["rles"], (row["height"], row["width"]), background)
    bare = [box for box, mask in zip(row["boxes_xyxy"], row["rles"], strict=True) if mask is None]
    void_boxes(truth, bare, background)
    if row["void_rle"] is not None:
        truth[rle.decode(row["void_rle"], truth.shape)] = IGNORE
    return truth
