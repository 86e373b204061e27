"""All that a teacher's candidates on C decide before U is looked at: calibrators and thresholds, in one call a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tasks.labels.label_sets import LabelSet
from tasks.loop.calibration import Calibration, fit_calibration
from tasks.loop.matching import match_candidates
from tasks.loop.pixel_thresholds import PixelPromise, certify_pixel_thresholds
from tasks.loop.pixels import calibrate_pixels, count_pixels
from tasks.loop.rules import quality_feature, rules_of
from tasks.loop.thresholds import Promise, ThresholdSet, certify_thresholds

if TYPE_CHECKING:  # its module brings torch
    from modelkit import ClassInfo


@dataclass(frozen=True, slots=True)
class RoundCalibration:
    """Calibrators of score and mask quality, and the thresholds (without bands: these need the scores on U)."""

    scores: Calibration
    quality: Calibration | None
    thresholds: ThresholdSet


def calibrate_instances(
    candidates: pa.Table,
    calibration: LabelSet,
    *,
    truth_per_image: Mapping[int, float],
    model_id: str,
    round_number: int,
    calibration_split: str,
    task: str = "instance",
    super_classes: Mapping[int, str] | None = None,
    promise: Promise | None = None,
) -> RoundCalibration:
    """Objects or panoptic segments: isotonic calibrators, certified thresholds per class, certified mask quality.

    Args:
        candidates: ``candidates.v1`` of the teacher on the images of C.
        calibration: the labels of C, which the teacher was never trained on.
        truth_per_image: objects per labelled image by class, from L.
        model_id, round_number, calibration_split: whose scores, and the manifest whose C it is.
        task: whose quality features are read.
        super_classes, promise: see :func:`tasks.loop.thresholds.certify_thresholds`.
    """
    matches = match_candidates(candidates, calibration.table)
    scores = fit_calibration(matches)
    names = rules_of(task).features
    features = {name: candidates[name].cast(pa.float64()).to_numpy()[matches.row].astype(np.float64) for name in names}
    measured = quality_feature(features, matches.score)
    # Of right candidates only: the quality is asked for when the class is certified.
    right = replace(matches, score=measured).where(matches.correct)
    quality = fit_calibration(right, feature="quality", target=right.iou, name="IoU with the true object")
    thresholds = certify_thresholds(
        matches,
        calibration.classes,
        model_id=model_id,
        round_number=round_number,
        calibration_split=calibration_split,
        truth_per_image=truth_per_image,
        expected_score=scores.apply(matches.class_id, matches.score),
        mask_quality=measured,
        super_classes=super_classes,
        promise=promise,
    )
    return RoundCalibration(scores, quality, thresholds)


def calibrate_semantic(
    candidates: pa.Table,
    calibration: LabelSet,
    *,
    model_id: str,
    round_number: int,
    calibration_split: str,
    seed: int,
    background: ClassInfo | None = None,
    promise: PixelPromise | None = None,
) -> RoundCalibration:
    """Semantic segmentation: precision by level, thresholds certified by bootstrap over the images of C.

    Args:
        candidates: ``candidates.v1`` of the teacher on the images of C.
        calibration: the labels of C, which the teacher was never trained on.
        model_id, round_number, calibration_split: whose scores, and the manifest whose C it is.
        seed: of the bootstrap.
        background: class of the pixels that no object covers, with a threshold of its own; None: they are void.
        promise: see :class:`tasks.loop.pixel_thresholds.PixelPromise`.
    """
    classes: tuple[ClassInfo, ...] = calibration.classes if background is None else (background, *calibration.classes)
    ids = [each.id for each in classes]
    counts = count_pixels(candidates, calibration.table, ids, None if background is None else background.id)
    thresholds = certify_pixel_thresholds(
        counts,
        classes,
        model_id=model_id,
        round_number=round_number,
        calibration_split=calibration_split,
        seed=seed,
        background=None if background is None else background.id,
        promise=promise,
    )
    return RoundCalibration(calibrate_pixels(counts), None, thresholds)
