"""Boxes and masks of labels as pycocotools takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def coco_rles(masks: Sequence[bytes], size_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """As pycocotools takes them."""
    return [{"size": list(size_hw), "counts": mask} for mask in masks]


def boxes_xywh(boxes_xyxy: Sequence[Sequence[float]]) -> np.ndarray:
    """(n, 4) float64 x, y, width and height, as pycocotools takes boxes."""
    boxes = np.array(boxes_xyxy, np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def size_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the item."""
    return row["height"], row["width"]


def filled_box(box_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels of a box whose corners are rounded."""
    mask = np.zeros(size_hw, bool)
    x1, y1, x2, y2 = (max(0, round(value)) for value in box_xyxy)
    mask[y1:y2, x1:x2] = True
    return mask
