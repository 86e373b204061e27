"""Where the one object of a picture usually is, of labels that have one in each: for models that are given no boxes.

The *usual place* is the median of the labelled boxes as shares of their pictures. What is found there tells where this
object is: its box lies about its points as the labelled boxes lie about theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks.labels.label_sets import LabelSet
from tasks.products.landmarks.overlaps import box_ious

LEAST_IOU = 0.5
"""Of the usual place with a labelled box: less is another place."""
_DECIMALS = 6

Shares = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class UsualPlace:
    """Where an object is, and how far its box goes beyond its points.

    Args:
        box: x0, y0, x1, y1 as shares of the picture's sides.
        edges: what to add to x0, y0, x1, y1 of the box around its points, as shares of that box's longer side.
    """

    box: Shares
    edges: Shares

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: keywords of this class."""
        return asdict(self)

    def in_picture(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(4,) float32 x0, y0, x1, y1 of a picture, pixels."""
        rows, columns = size_hw
        return (np.array(self.box) * [columns, rows, columns, rows]).astype(np.float32)

    def around(self, points_xy: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """(4,) float32: the box of an object with points (K, 2), NaN where absent; the usual one where it has none."""
        found = points_xy[np.isfinite(points_xy).all(1)]
        if len(found) == 0:
            return self.in_picture(size_hw)
        box = np.concatenate([found.min(0), found.max(0)])
        box = box + np.array(self.edges) * (box[2:] - box[:2]).max()
        return box.astype(np.float32) if (box[2:] > box[:2]).all() else self.in_picture(size_hw)


def usual_place(labels: LabelSet) -> UsualPlace | None:
    """Where objects usually are; None where a picture has several, or half of them are elsewhere.

    Args:
        labels: with points.
    """
    boxes, edges = [], []
    for row in labels.table.to_pylist():
        if len(row["labels"]) > 1:
            return None
        sides = np.tile([row["width"], row["height"]], 2)
        boxes += [np.array(box) / sides for box in row["boxes_xyxy"]]
        edges += list(_edges(row))
    if not edges:
        return None
    usual = np.median(boxes, axis=0)
    if np.median(box_ious(usual[None], np.array(boxes))) < LEAST_IOU:
        return None
    return UsualPlace(_shares(usual), _shares(np.median(edges, axis=0)))


def _edges(row: dict[str, Any]) -> Iterator[np.ndarray]:
    for box, points in zip(row["boxes_xyxy"], row["keypoint_xyv"], strict=True):
        given = np.array([(x, y) for x, y, v in points or () if v]).reshape(-1, 2)
        around = np.concatenate([given.min(0), given.max(0)]) if len(given) else np.zeros(4)
        longer = (around[2:] - around[:2]).max()
        if longer > 0:
            yield (np.array(box) - around) / longer


def _shares(values: np.ndarray) -> Shares:
    x0, y0, x1, y1 = (round(float(value), _DECIMALS) for value in values)
    return x0, y0, x1, y1
