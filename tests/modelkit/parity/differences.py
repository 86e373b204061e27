"""How far our results for a picture are from another system's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modelkit import Instances, rle

_NEAR = 0.02  # of the longer side of the image, and of a score
_MOVED = 0.05  # with 400 sides that differ by up to .004 px, three lie on two sides of a whole pixel by chance


@dataclass(frozen=True)
class Objects:
    """Another system's results for one picture.

    Args:
        labels: (n,) class ids.
        scores: (n,).
        boxes_xyxy: (n, 4) pixels; None: those around the masks.
        masks: (n, H, W) bool, or None.
        pasted: where its system lays masks on whole pixels: boxes (n, 4) to whole sides (n, 4). A side a thousandth of
            a pixel further on moves such a mask by a whole one, so masks are compared where both boxes give the same.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes_xyxy: np.ndarray | None = None
    masks: np.ndarray | None = None
    pasted: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4), the given ones or those around the masks."""
        if self.boxes_xyxy is not None:
            return self.boxes_xyxy
        assert self.masks is not None
        return np.array([_around(mask) for mask in self.masks]).reshape(-1, 4)


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@dataclass(frozen=True)
class Differences:
    """Of our results to another system's, for one picture.

    Args:
        compared: its results, or pixels.
        missed: share of its and of our results without one of the other's of the same class within 2 % of the longer
            side of the image on every side of the box and as near in its score, or of pixels of another class.
        score: largest difference of the scores of pairs.
        box: largest difference of their sides, pixels.
        mask: largest share of a mask's pixels that differ.
        moved: share of the masks that lie on other whole pixels and weren't compared.
    """

    compared: int
    missed: float
    score: float = 0.0
    box: float = 0.0
    mask: float = 0.0
    moved: float = 0.0

    def within(self, score: float, box: float, mask: float) -> bool:
        """Nothing is missed, no difference is above these, and of 100 masks no more than five weren't compared."""
        alike = self.score <= score and self.box <= box and self.mask <= mask
        return self.missed == 0 and self.moved <= _MOVED and alike


def of_maps(found: Instances, expected: np.ndarray) -> Differences:
    """Our regions beside a map (h, w) of class ids, which is stretched over the source if it is not as large."""
    rows, columns = (
        (2 * np.arange(side) + 1) * have // (2 * side) for side, have in zip(found.size_hw, expected.shape, strict=True)
    )
    wanted, given = expected[rows[:, None], columns], np.zeros(found.size_hw, np.int64)
    for label, mask in zip(found.labels.tolist(), found.rles or (), strict=True):
        given[rle.decode(mask, found.size_hw).astype(bool)] = label
    return Differences(wanted.size, float((given != wanted).mean()))


def of_objects(found: Instances, expected: Objects) -> Differences:
    """Our objects beside another system's: each of its results with the nearest of ours."""
    boxes = expected.boxes
    if len(boxes) == 0 or len(found) == 0:
        return Differences(len(boxes), float(len(boxes) + len(found) > 0))
    apart = np.abs(boxes[:, None] - found.boxes_xyxy[None]).max(-1)
    apart += max(found.size_hw) * np.abs(expected.scores[:, None] - found.scores[None])
    apart[expected.labels[:, None] != found.labels[None]] = np.inf
    near = apart <= _NEAR * max(found.size_hw)
    lonely = (~near.any(1)).sum() + (~near.any(0)).sum()
    theirs = np.flatnonzero(near.any(1))
    ours = apart[theirs].argmin(1)
    score = np.abs(expected.scores[theirs] - found.scores[ours]).max(initial=0)
    box = np.abs(boxes[theirs] - found.boxes_xyxy[ours]).max(initial=0)
    mask, moved = _of_masks(found, expected, theirs, ours)
    return Differences(len(boxes), float(lonely / sum(near.shape)), float(score), float(box), mask, moved)


def _of_masks(found: Instances, expected: Objects, theirs: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """The largest difference of the masks of pairs, and the share that lies on other whole pixels."""
    if expected.masks is None or found.rles is None:
        return 0.0, 0.0
    if expected.pasted is None:
        same = np.ones(len(theirs), bool)
    else:
        same = (expected.pasted(expected.boxes[theirs]) == expected.pasted(found.boxes_xyxy[ours])).all(1)
    worst = 0.0
    for their, our in zip(theirs[same], ours[same], strict=True):
        a, b = expected.masks[their].astype(bool), rle.decode(found.rles[our], found.size_hw).astype(bool)
        worst = max(worst, float((a ^ b).sum() / max(1, (a | b).sum())))
    return worst, float(1 - same.mean()) if len(same) else 0.0
