"""Predictions on labelled images and what became of them; which of them are right, a kind's own match says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Matches:
    """Predictions of calibration images and what became of them; all arrays (n,).

    Args:
        image: position of the image in ``image_ids``.
        label: int64 class id.
        score: float64, the feature that thresholds and calibrators read.
        iou: float64 in [0, 1], with the true object it took, else the largest with any of its class; 0 without one.
        correct: bool, class right and IoU at least the limit of the match.
        row: position of the prediction among the rows that were matched.
        image_ids: names of all images that were looked at, also those without predictions.
        truth_count: true objects by class, crowds apart.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    correct: np.ndarray
    row: np.ndarray
    image_ids: tuple[str, ...]
    truth_count: dict[int, int]

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def of(
        cls,
        found: Sequence[tuple[int, int, float, float, bool, int]],
        image_ids: Sequence[str],
        truth_count: dict[int, int],
    ) -> Matches:
        """Matches from (image, label, score, IoU, correct, row) of each prediction."""
        columns = list(zip(*found, strict=True)) if found else [()] * 6
        kinds = (np.int64, np.int64, np.float64, np.float64, bool, np.int64)
        image, label, score, iou, correct, row = (
            np.array(values, kind) for values, kind in zip(columns, kinds, strict=True)
        )
        return cls(image, label, score, iou, correct, row, tuple(image_ids), truth_count)

    def where(self, chosen: np.ndarray) -> Matches:
        """Some of the predictions, on the same images."""
        names = ("image", "label", "score", "iou", "correct", "row")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def of_class(self, label: int) -> np.ndarray:
        """Positions of the predictions of one class."""
        return np.flatnonzero(self.label == label)
