"""Pixels as candidates.

A probability map becomes rows that can be thresholded again at will: per image and class one row for each level of
confidence, whose mask holds the pixels of that class with a largest probability in [level, next level). So the rule of
selection reads a row's score (its level) and never the map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask
from scipy.optimize import isotonic_regression

from modelkit import rle
from tasks.evaluation.calibrators import Calibrator
from tasks.loop.calibration import Calibration
from tasks.products.segments.painting import IGNORE, truth_map

LEVELS = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Lower edges of confidence, also the only thresholds that can be chosen."""


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """Pixels of one class at one level of confidence."""

    label: int
    level: float
    rle: bytes
    area: int


def confidence_regions(class_map: np.ndarray, confidence: np.ndarray, ignore: Sequence[int] = ()) -> list[PixelRegion]:
    """The rows of one image.

    Args:
        class_map: (H, W) integers, the most probable class of each pixel.
        confidence: (H, W) floats, its probability.
        ignore: classes without rows.

    Returns:
        By class, then level, ascending; regions without pixels are left out.
    """
    if class_map.shape != confidence.shape or class_map.ndim != 2:
        raise ValueError(f"class map {class_map.shape} and confidence {confidence.shape} must be one (H, W)")
    if not (confidence >= 0).all():
        raise ValueError("confidence must not be below 0 or NaN")
    level = np.searchsorted(np.array(LEVELS), confidence, side="right") - 1
    found = rle.encode_label_map(class_map.astype(np.int64) * len(LEVELS) + level)
    regions = []
    for code, mask in found.items():
        label, place = divmod(code, len(LEVELS))
        if label not in ignore:
            regions.append(PixelRegion(label, LEVELS[place], mask, rle.area(mask)))
    return regions


def by_class(rows: pa.Table, background: int | None, min_area: int) -> pa.Table:
    """The regions of each image and class as one, whatever their levels, for people to look at; columns as they were.

    Args:
        rows: rows of pixels as ``pseudo_labels.v2`` or ``candidates.v2`` have them, with ``score_calibrated``.
        background: class that is left out.
        min_area: smaller regions are left out, in pixels.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.to_pylist():
        if row["label"] != background:
            groups[row["image_id"], row["label"]].append(row)
    merged = [_merged(groups[key]) for key in sorted(groups)]
    return pa.Table.from_pylist([row for row in merged if row["area"] >= min_area], schema=rows.schema)


def _merged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    size = [rows[0]["height"], rows[0]["width"]]
    mask = coco_mask.merge([{"size": size, "counts": row["rle"]} for row in rows])
    x, y, width, height = coco_mask.toBbox(mask).tolist()
    areas = [row["area"] for row in rows]
    score = sum(row["score_calibrated"] * area for row, area in zip(rows, areas, strict=True)) / max(sum(areas), 1)
    return {
        **rows[0],
        "rle": mask["counts"],
        "area": sum(areas),
        "box_xyxy": [x, y, x + width, y + height],
        "score_calibrated": round(score, 6),
    }


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Pixels of the calibration images by image, class and level: how many there are, how many of them right.

    Args:
        total, right: (images, classes, levels) int64; void pixels are in neither.
        truth: (images, classes) int64 true pixels.
        labels: of the second axis.
        image_ids: of the first axis.
    """

    total: np.ndarray
    right: np.ndarray
    truth: np.ndarray
    labels: tuple[int, ...]
    image_ids: tuple[str, ...]


def count_pixels(
    candidates: pa.Table, truth: pa.Table, labels: Sequence[int], background: int | None = None
) -> PixelCounts:
    """Compare the rows of calibration images with their labels.

    Args:
        candidates: ``candidates.v2`` of regions (see :func:`confidence_regions`).
        truth: ``labels.v1``.
        labels: all classes.
        background: class of the pixels that no object covers; None: they are void.
    """
    names = truth["image_id"].to_pylist()
    images, places = {name: k for k, name in enumerate(names)}, {c: k for k, c in enumerate(labels)}
    shape = (len(names), len(labels), len(LEVELS))
    total, right = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    true_pixels = np.zeros(shape[:2], np.int64)
    maps = {}
    for row in truth.to_pylist():
        maps[row["image_id"]] = truth_map(row, background)
        ids, counts = np.unique(maps[row["image_id"]], return_counts=True)
        for label, count in zip(ids.tolist(), counts.tolist(), strict=True):
            if label in places:
                true_pixels[images[row["image_id"]], places[label]] = count
    for row in candidates.select(["image_id", "label", "score", "rle", "height", "width"]).to_pylist():
        true_map = maps[row["image_id"]]
        inside = rle.decode(row["rle"], (row["height"], row["width"])) & (true_map != IGNORE)
        place = images[row["image_id"]], places[row["label"]], level_of(row["score"])
        total[place] += int(inside.sum())
        right[place] += int((true_map[inside] == row["label"]).sum())
    return PixelCounts(total, right, true_pixels, tuple(labels), tuple(names))


def calibrate_pixels(counts: PixelCounts) -> Calibration:
    """What share of pixels is right at each level, per class and pooled; never falling with the level."""
    by_class = {}
    for k, label in enumerate(counts.labels):
        if counts.total[:, k].any():
            by_class[label] = _level_calibrator(counts.total[:, k], counts.right[:, k], label)
    return Calibration(by_class, _level_calibrator(counts.total.sum(axis=1), counts.right.sum(axis=1), None))


def _level_calibrator(total: np.ndarray, right: np.ndarray, label: int | None) -> Calibrator:
    pixels, hits = total.sum(axis=0), right.sum(axis=0)
    seen = pixels > 0
    levels = np.array(LEVELS)[seen]
    precision = hits[seen] / pixels[seen]
    fitted = isotonic_regression(precision, weights=pixels[seen]).x if seen.any() else precision
    share = pixels[seen] / max(pixels.sum(), 1)
    return Calibrator(
        label=label,
        knots_x=tuple(levels.tolist()),
        knots_y=tuple(np.clip(fitted, 0.0, 1.0).tolist()),
        n=int(pixels.sum()),
        feature="score",
        target="pixel of its class",
        d_ece_before=float((share * np.abs(levels - precision)).sum()),
        d_ece_after=float((share * np.abs(fitted - precision)).sum()),
    )


def pixel_error(calibration: Calibration, counts: PixelCounts) -> float:
    """D-ECE of calibrated pixels: how far the precision at each class and level is from what was expected of it.

    Args:
        calibration: of another set of images.
        counts: of the images that are judged.

    Returns:
        Mean absolute gap, weighted by pixels; NaN without pixels.
    """
    gap, pixels = 0.0, int(counts.total.sum())
    for k, label in enumerate(counts.labels):
        total, right = counts.total[:, k].sum(axis=0), counts.right[:, k].sum(axis=0)
        expected = calibration.apply(np.full(len(LEVELS), label), np.array(LEVELS))
        gap += float(np.abs(right - total * expected).sum())
    return gap / pixels if pixels else float("nan")


def level_of(score: float) -> int:
    """Position of a score among :data:`LEVELS`; scores of rows are levels, whatever float32 made of them."""
    return int(np.abs(np.array(LEVELS) - score).argmin())
