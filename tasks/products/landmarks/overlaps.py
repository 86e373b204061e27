"""How much two boxes, or two places of a point, are the same; plain numpy."""

from __future__ import annotations

import numpy as np

SPREAD = 0.05
"""Distance of two places, as a share of the diagonal of the object's box, at which they are alike by .61."""


def likeness(distances: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """exp(-d^2 / 2 s^2) of distances (..., n, K), s being ``SPREAD`` of the diagonals of n boxes, a pixel or more.

    1 for no distance, falling with it, the same at any scale; 0 where a distance is not finite.
    """
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    scale = SPREAD * np.maximum(np.hypot(sides[:, 0], sides[:, 1]), 1.0)[:, None]
    known = np.isfinite(distances)
    return np.where(known, np.exp(-0.5 * (np.where(known, distances, 0.0) / scale) ** 2), 0.0)


def box_ious(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) IoU of boxes (n, 4) and (m, 4) xyxy; 0 with a box that has no area."""
    first = np.maximum(mine[:, None, :2], others[None, :, :2])
    last = np.minimum(mine[:, None, 2:], others[None, :, 2:])
    shared = np.clip(last - first, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (mine, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0))
