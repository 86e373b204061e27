"""What a task brings to the loop: quality features, the rule of selection, and the names of its loss and metric.

A further task is one more :class:`TaskRules` in :data:`RULES`; nothing else in selection, lineage or gate knows tasks.
Rules are pure: arrays in, decisions out, no clock, no chance, no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pycocotools import mask as coco_mask

from infra.errors import UsageError

WEIGHT_CAP = 2.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All candidates of a round, column by column; arrays are (n,), sorted by image and position.

    Args:
        image: position of the image; equal for candidates of one image, ascending.
        class_id: int64.
        score, score_cal: float64, as the teacher gave it, and calibrated.
        quality, quality_cal: float64 mask quality (see :func:`quality_feature`), as measured, and the IoU that it makes
            expect; the latter is NaN without a calibrator.
        features: name -> float64 of the task's features, NaN where not measured.
        t_hi, t_lo, t_mask: float64 by the candidate's class; NaN where the class abstains.
        area_share: float64 mask area over image area.
        area: int64 pixels of the mask (of the box without one).
        masks: compressed run lengths, or None.
        boxes_xywh: (n, 4) float64.
        size_hw: (n, 2) int64 of the image.
    """

    image: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    score_cal: np.ndarray
    quality: np.ndarray
    quality_cal: np.ndarray
    features: Mapping[str, np.ndarray]
    t_hi: np.ndarray
    t_lo: np.ndarray
    t_mask: np.ndarray
    area: np.ndarray
    area_share: np.ndarray
    masks: list[bytes | None]
    boxes_xywh: np.ndarray
    size_hw: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a rule decided; arrays are (n,). ``accept`` is a candidate that teaches at least its class.

    Args:
        decision, reason: str.
        accept_cls, accept_box, accept_mask: bool.
        weight_cls, weight_geom: float64, 0 where nothing is taught.
    """

    decision: np.ndarray
    reason: np.ndarray
    accept_cls: np.ndarray
    accept_box: np.ndarray
    accept_mask: np.ndarray
    weight_cls: np.ndarray
    weight_geom: np.ndarray


class Rule(Protocol):
    """Decides about all candidates of a round at once."""

    def __call__(self, evidence: Evidence) -> Decisions: ...


@dataclass(frozen=True, slots=True)
class TaskRules:
    """The four things that a task brings.

    Args:
        features: columns of ``candidates.v1`` that say how good the geometry is, each in [0, 1] and rising with it;
            their mean is what the calibrator of quality reads.
        rule: see :class:`Rule`.
        loss: name of the unlabelled loss, for the trainer.
        metric: name of the metric that the gate compares, for the evaluation.
    """

    task: str
    features: tuple[str, ...]
    rule: Rule
    loss: str
    metric: str


def rules_of(task: str) -> TaskRules:
    """The rules of a task. Raises UsageError for one that has none."""
    if task not in RULES:
        raise UsageError(f"self-training has no rules for the task {task!r}", hint=f"one of {', '.join(RULES)}")
    return RULES[task]


def quality_feature(features: Mapping[str, np.ndarray], score: np.ndarray) -> np.ndarray:
    """(n,) mean of the features that were measured; the score where none was."""
    if not features:
        return score
    stacked = np.stack(list(features.values()))
    measured = ~np.isnan(stacked)
    count = measured.sum(axis=0)
    mean = np.where(measured, stacked, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, score)


def normalised(weights: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Weights with mean 1 over ``where``, then capped at 2, and 0 elsewhere; six decimals, the same on any machine."""
    mean = weights[where].mean() if where.any() else 1.0
    scaled = np.minimum(weights / mean, WEIGHT_CAP) if mean > 0 else np.ones_like(weights)
    return np.where(where, np.round(scaled, 6), 0.0)


MIN_AREA_PX, MAX_AREA_SHARE = 32, 0.95
MASK_NMS_IOU, BOX_NMS_IOU = 0.6, 0.7
MASK_QUALITY = 0.75
MAX_JITTER, MIN_TTA_FOR_BOX = 0.02, 0.85


def decide_instances(evidence: Evidence) -> Decisions:
    """Bands by certified thresholds; class, box and mask are taught apart.

    In order: below t_lo is background; a class that abstains, a mask that is too small or too large, a duplicate of a
    more confident candidate, and a score below t_hi are ignored; the rest teaches its class. The mask is taught from
    the certified quality on where an IoU of .75 is expected, the box where it is steady under jitter or augmentation
    (where neither was measured, with the mask).
    """
    n = len(evidence)
    reason = np.full(n, "certified", dtype=object)
    ordered: list[tuple[str, np.ndarray]] = [
        ("below_t_hi", evidence.score < evidence.t_hi),
        ("duplicate", duplicates(evidence)),
        ("too_large", evidence.area_share > MAX_AREA_SHARE),
        ("too_small", evidence.area < MIN_AREA_PX),
        ("abstain", np.isnan(evidence.t_hi)),
        ("below_t_lo", evidence.score < evidence.t_lo),
    ]
    for name, applies in ordered:  # the last one that applies is the first in order
        reason[applies] = name
    accepted = reason == "certified"
    decision = np.where(accepted, "accept", np.where(reason == "below_t_lo", "reject", "ignore"))
    return _taught(evidence, accepted, decision, reason)


def _taught(evidence: Evidence, accepted: np.ndarray, decision: np.ndarray, reason: np.ndarray) -> Decisions:
    """What accepted objects teach: their class, and box and mask as far as these are good enough."""
    mask = accepted & (evidence.quality >= evidence.t_mask) & (evidence.quality_cal >= MASK_QUALITY)  # NaN is no
    jitter, tta = (evidence.features.get(name, np.full(len(evidence), np.nan)) for name in ("q_jitter", "q_tta"))
    steady = (jitter < MAX_JITTER) | (tta >= MIN_TTA_FOR_BOX)
    box = accepted & np.where(np.isnan(jitter) & np.isnan(tta), mask, steady)
    geometry = np.where(np.isnan(evidence.quality_cal), 0.0, evidence.quality_cal)
    return Decisions(
        decision=decision,
        reason=reason,
        accept_cls=accepted,
        accept_box=box,
        accept_mask=mask,
        weight_cls=normalised(evidence.score_cal, accepted),
        weight_geom=normalised(geometry, mask | box),
    )


def duplicates(evidence: Evidence) -> np.ndarray:
    """(n,) bool: overlaps a more confident candidate of its image and class (mask IoU .6, box IoU .7) that is none."""
    found = np.zeros(len(evidence), bool)
    edges = np.flatnonzero(np.diff(evidence.image)) + 1
    for mine in np.split(np.arange(len(evidence)), edges):
        for class_id in np.unique(evidence.class_id[mine]).tolist():
            same = mine[evidence.class_id[mine] == class_id]
            if len(same) > 1:
                ranked = same[np.lexsort((same, -evidence.score[same]))]
                found[ranked] = _suppressed(evidence, ranked)
    return found


def _suppressed(evidence: Evidence, ranked: np.ndarray) -> np.ndarray:
    masks = [evidence.masks[k] for k in ranked.tolist()]
    if all(mask is not None for mask in masks):
        size = evidence.size_hw[ranked[0]].tolist()
        rles = [{"size": size, "counts": mask} for mask in masks]
        near = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles))) >= MASK_NMS_IOU
    else:
        boxes = evidence.boxes_xywh[ranked]
        near = np.asarray(coco_mask.iou(boxes, boxes, [0] * len(boxes))) >= BOX_NMS_IOU
    gone = np.zeros(len(ranked), bool)
    for k in range(1, len(ranked)):
        gone[k] = bool((near[k, :k] & ~gone[:k]).any())
    return gone


def decide_pixels(evidence: Evidence) -> Decisions:
    """Regions of one class at one level of confidence: taught from the class's threshold on, else ignored.

    Nothing becomes background: a pixel that is not accepted belongs to no class that is known.
    """
    accepted = evidence.score >= evidence.t_hi  # NaN is no
    reason = np.where(accepted, "certified", np.where(np.isnan(evidence.t_hi), "abstain", "below_t_hi"))
    weight = accepted.astype(np.float64)
    return Decisions(
        decision=np.where(accepted, "accept", "ignore"),
        reason=reason.astype(object),
        accept_cls=accepted,
        accept_box=np.zeros(len(evidence), bool),
        accept_mask=accepted,
        weight_cls=weight,
        weight_geom=weight,
    )


def decide_segments(evidence: Evidence) -> Decisions:
    """Segments of panoptic maps, things and stuff: accepted by certified thresholds, else ignored.

    A segment is right if its IoU with a true one exceeds one half, as panoptic quality counts it. Nothing becomes
    background, for every pixel is of some segment; what is not accepted teaches nothing. Segments of a map never
    overlap, and stuff may fill the image. Box and mask of things are taught as those of instances.
    """
    reason = np.full(len(evidence), "certified", dtype=object)
    ordered: list[tuple[str, np.ndarray]] = [
        ("below_t_hi", evidence.score < evidence.t_hi),
        ("too_small", evidence.area < MIN_AREA_PX),
        ("abstain", np.isnan(evidence.t_hi)),
    ]
    for name, applies in ordered:  # the last one that applies is the first in order
        reason[applies] = name
    accepted = reason == "certified"
    return _taught(evidence, accepted, np.where(accepted, "accept", "ignore"), reason)


RULES: dict[str, TaskRules] = {
    "instance": TaskRules(
        "instance", ("q_iou", "q_stability", "q_tta"), decide_instances, "instance_pseudo", "mask_ap"
    ),
    "semantic": TaskRules("semantic", (), decide_pixels, "pixel_pseudo", "miou"),
    "panoptic": TaskRules("panoptic", (), decide_segments, "segment_pseudo", "pq"),
}
