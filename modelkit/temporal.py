"""How steady a model's masks are from frame to frame: high scores per image may still flicker on video."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from modelkit import rle
from modelkit.carriers import Instances


def mean_warped_iou(clip: Sequence[Instances], flows: Sequence[np.ndarray], min_score: float = 0.5) -> float:
    """Mean IoU between what is found in a frame and what is found in the next one, carried back along the motion.

    Compared are, class by class, the unions of the masks; a class that is found in neither frame does not count, one
    that is found in one of the two counts as 0. Pixels that leave the image are left out of both.

    Args:
        clip: results of consecutive frames of one size.
        flows: (H, W, 2) displacement (dx, dy) in pixels from each frame to the next, one fewer than frames.
        min_score: results below it are not looked at.

    Returns:
        In [0, 1]; 1 for a clip in which nothing is ever found.

    Raises:
        ValueError: when the number of flows does not fit the clip, or results carry no masks.
    """
    if len(flows) != max(0, len(clip) - 1):
        raise ValueError(f"{len(clip)} frames need {max(0, len(clip) - 1)} flows between them, got {len(flows)}")
    unions = [_by_class(found, min_score) for found in clip]
    ious = []
    for (now, following), flow in zip(pairwise(unions), flows, strict=True):
        rows, columns, inside = _places(flow)
        for label in now.keys() | following.keys():
            nothing = np.zeros(inside.shape, bool)
            here = now.get(label, nothing) & inside
            carried = following.get(label, nothing)[rows, columns] & inside
            union = int((here | carried).sum())
            if union:
                ious.append(int((here & carried).sum()) / union)
    return float(np.mean(ious)) if ious else 1.0


def _by_class(found: Instances, min_score: float) -> dict[int, np.ndarray]:
    if found.rles is None:
        raise ValueError("results without masks cannot be compared")
    unions: dict[int, np.ndarray] = {}
    for label, score, mask in zip(found.labels.tolist(), found.scores.tolist(), found.rles, strict=True):
        if score >= min_score:
            drawn = rle.decode(mask, found.size_hw)
            unions[label] = unions[label] | drawn if label in unions else drawn
    return unions


def _places(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each pixel in the next frame, nearest pixel, and whether that lies in the image."""
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    y, x = np.rint(rows + flow[..., 1]).astype(int), np.rint(columns + flow[..., 0]).astype(int)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside, y, 0), np.where(inside, x, 0), inside
