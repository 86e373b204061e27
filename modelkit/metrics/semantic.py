"""Semantic quality from a confusion matrix: mean IoU and pixel accuracy (Long et al. 2015, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

IGNORE = 255


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """How well label maps agree.

    Args:
        miou: mean of ``by_class``; 0 without any.
        pixel_accuracy: share of labelled pixels that are right; 0 without any.
        by_class: intersection over union per class id that occurs in truth or prediction.
        num_pixels: that were labelled.
    """

    miou: float
    pixel_accuracy: float
    by_class: Mapping[int, float]
    num_pixels: int


class SemanticQuality:
    """Sums up a confusion matrix over any number of images; memory does not grow with them.

    Args:
        num_classes: class ids are 0 .. num_classes - 1.
        ignore: id in the truth of pixels that count for nothing.

    Attributes:
        confusion: (C, C) int64; rows are the truth, columns what was predicted.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integers.
            predicted: (H, W) integers; a class where the truth is to be ignored does not matter.

        Raises:
            ValueError: when shapes differ or a counted id is out of range.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth and prediction must have one shape, got {truth.shape} and {predicted.shape}")
        counted = truth != self.ignore
        rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        for name, ids in (("truth", rows), ("prediction", columns)):
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_classes:
                raise ValueError(f"{name} holds ids {ids.min()} .. {ids.max()}, expected 0 .. {self.num_classes - 1}")
        pairs = np.bincount(rows * self.num_classes + columns, minlength=self.num_classes**2)
        self.confusion += pairs.reshape(self.num_classes, self.num_classes)

    def scores(self) -> SemanticScores:
        """Of all images so far."""
        right = np.diagonal(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        by_class = {int(k): float(right[k] / union[k]) for k in np.flatnonzero(union)}
        num_pixels = int(self.confusion.sum())
        return SemanticScores(
            miou=float(np.mean(list(by_class.values()))) if by_class else 0.0,
            pixel_accuracy=float(right.sum() / num_pixels) if num_pixels else 0.0,
            by_class=by_class,
            num_pixels=num_pixels,
        )
