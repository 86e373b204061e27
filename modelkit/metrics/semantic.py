"""Semantic quality from a confusion matrix: mean IoU and pixel accuracy (Long et al. 2015, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

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
        border_px: count only pixels this near to where the truth changes its class ("trimap" of Krähenbühl and Koltun
            2011, section 5): how good outlines are. None counts all. See ``near_border``.

    Attributes:
        confusion: (C, C) int64; rows are the truth, columns what was predicted.

    Raises:
        ValueError: for a border of no width.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE, border_px: float | None = None) -> None:
        if border_px is not None and border_px < 1:
            raise ValueError(f"border_px must be at least 1, or None for all pixels, got {border_px}")
        self.num_classes, self.ignore, self.border_px = num_classes, ignore, border_px
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
        if self.border_px is not None:
            counted &= near_border(truth, self.border_px)
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


def near_border(truth: np.ndarray, distance_px: float) -> np.ndarray:
    """(H, W) bool: pixels in a band on both sides of every change from one id to another.

    Args:
        truth: (H, W) integers; an ignored id is one like any other here, and the image's edge is no change.
        distance_px: width of the band on each side. The pixels that touch the change (with a side) are at distance 1,
            and from there distances between centres of pixels are added.
    """
    border = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        along = np.moveaxis(border, axis, 0), np.moveaxis(truth, axis, 0)
        changes = along[1][1:] != along[1][:-1]
        along[0][1:] |= changes
        along[0][:-1] |= changes
    if not border.any():
        return border  # there is nothing to be near to
    near: np.ndarray = distance_transform_edt(~border) <= distance_px - 1
    return near
