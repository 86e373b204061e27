"""Objects with boxes and masks in the loop: which are taken as labels, how they are calibrated, and what they teach."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from modelkit import Predictor
from tasks.engine.job import PredictorSpec
from tasks.labels.label_sets import LabelSet
from tasks.loop.audits import draw_audit
from tasks.loop.calibration import fit_calibration
from tasks.loop.matching import Matches
from tasks.loop.methods import Calibrated, CalibratedFor, MatchedMethods
from tasks.loop.rules import Decisions, Evidence, first_reason, floats, normalised, quality_feature
from tasks.loop.selection import kept_candidates
from tasks.loop.thresholds import SCORE_FLOOR, Promise, ThresholdSet, certify_thresholds
from tasks.product import LoopKind
from tasks.products.segments import quality
from tasks.products.segments.disagreement_files import read_disagreements, to_files
from tasks.products.segments.loop_candidates import (
    COLUMNS,
    DECIDED,
    Row,
    box_of,
    candidate,
    coco_rles,
    example_object,
    example_of,
    examples_by_item,
    item_of,
    mask_iou,
)
from tasks.products.segments.matching import MASK_IOU, boxes_xywh, match_candidates
from tasks.training.examples import Example
from tasks.training.recipe import TrainingRecipe

MAX_PER_IMAGE = 100
MIN_AREA_PX, MAX_AREA_SHARE = 32, 0.95
MASK_NMS_IOU, BOX_NMS_IOU = 0.6, 0.7
MASK_QUALITY = 0.75
MIN_TTA_FOR_BOX = 0.85
FEATURES = ("q_stability", "q_tta")


def object_candidates(row: Row, floor: float) -> list[dict[str, Any]]:
    """The best 100 objects of an item from the floor on, in the order in which they were found."""
    scores = row["scores"]
    found = [k for k, score in enumerate(scores) if score >= floor]
    return [candidate(row, k) for k in sorted(sorted(found, key=lambda k: -scores[k])[:MAX_PER_IMAGE])]


def decide_objects(evidence: Evidence) -> Decisions:
    """Bands by certified thresholds; class, box and mask are taught apart.

    In order: below t_lo is background; a class that abstains, a mask that is too small or too large, a duplicate of a
    more confident candidate, and a score below t_hi are ignored; the rest teaches its class. The mask is taught from
    the certified quality on where an IoU of .75 is expected, the box where it is steady under other views (where none
    was looked at, with the mask).
    """
    rows = evidence.rows
    area, pixels = floats(rows["area"]), rows["height"].to_numpy().astype(np.int64) * rows["width"].to_numpy()
    reason = first_reason(
        ("below_t_lo", evidence.score < evidence.t_lo),
        ("abstain", np.isnan(evidence.t_hi)),
        ("too_small", area < MIN_AREA_PX),
        ("too_large", area / pixels > MAX_AREA_SHARE),
        ("duplicate", duplicates(evidence)),
        ("below_t_hi", evidence.score < evidence.t_hi),
    )
    accepted = reason == "certified"
    return taught(evidence, np.where(accepted, "accept", np.where(reason == "below_t_lo", "reject", "ignore")), reason)


def taught(evidence: Evidence, decision: np.ndarray, reason: np.ndarray) -> Decisions:
    """What accepted objects teach: their class, and box and mask as far as these are good enough."""
    accepted = decision == "accept"
    expected = evidence.quality_calibrated
    mask = accepted & (evidence.quality >= evidence.t_quality) & (expected >= MASK_QUALITY)  # NaN is no
    steady = evidence.features.get("q_tta", np.full(len(evidence), np.nan))
    box = accepted & np.where(np.isnan(steady), mask, steady >= MIN_TTA_FOR_BOX)
    weight_geometry = normalised(np.where(np.isnan(expected), 0.0, expected), mask | box)
    return Decisions(
        decision=decision,
        reason=reason,
        weight=normalised(evidence.score_calibrated, accepted),
        columns={"accept_box": box, "accept_mask": mask, "weight_geometry": weight_geometry},
    )


def duplicates(evidence: Evidence) -> np.ndarray:
    """(n,) bool: overlaps a more confident candidate of its image and class (mask IoU .6, box IoU .7) that is none."""
    found = np.zeros(len(evidence), bool)
    rows = evidence.rows.select(["rle", "box_xyxy", "height", "width"]).to_pylist()
    edges = np.flatnonzero(np.diff(evidence.image)) + 1
    for mine in np.split(np.arange(len(evidence)), edges):
        for label in np.unique(evidence.label[mine]).tolist():
            same = mine[evidence.label[mine] == label]
            if len(same) > 1:
                ranked = same[np.lexsort((same, -evidence.score[same]))]
                found[ranked] = _suppressed([rows[k] for k in ranked.tolist()])
    return found


def _suppressed(ranked: Sequence[Row]) -> np.ndarray:
    masks = [row["rle"] for row in ranked]
    if all(mask is not None for mask in masks):
        rles = coco_rles(masks, (ranked[0]["height"], ranked[0]["width"]))
        near = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles))) >= MASK_NMS_IOU
    else:
        boxes = boxes_xywh([row["box_xyxy"] for row in ranked])
        near = np.asarray(coco_mask.iou(boxes, boxes, [0] * len(boxes))) >= BOX_NMS_IOU
    gone = np.zeros(len(ranked), bool)
    for k in range(1, len(ranked)):
        gone[k] = bool((near[k, :k] & ~gone[:k]).any())
    return gone


def calibrate_objects(
    candidates: pa.Table,
    calibration: LabelSet,
    by: CalibratedFor,
    *,
    truth_per_image: dict[int, float],
    features: Sequence[str] = FEATURES,
    super_classes: dict[int, str] | None = None,
) -> Calibrated:
    """Isotonic calibrators, certified thresholds per class, certified quality of masks.

    Args:
        candidates: ``candidates.v2`` on ``calibration``, of models that never saw it.
        calibration: the labels that calibrate.
        by: who predicted.
        truth_per_image: objects per labelled image by class, of the labels that train.
        features: whose mean is the quality.
        super_classes: see :func:`tasks.loop.thresholds.certify_thresholds`.
    """
    matches = match_candidates(candidates, calibration.table)
    scores = fit_calibration(matches)
    measured = quality_feature({name: floats(candidates[name])[matches.row] for name in features}, matches.score)
    # Of right candidates only: the quality is asked for when the class is certified.
    right = replace(matches, score=measured).where(matches.correct)
    expected = fit_calibration(right, feature="quality", target=right.iou, name="IoU with the true object")
    thresholds = certify_thresholds(
        matches,
        calibration.classes,
        model_id=by.model_id,
        round_number=by.round_number,
        calibration_split=by.calibration_split,
        truth_per_image=truth_per_image,
        expected_score=scores.apply(matches.label, matches.score),
        quality=measured,
        is_good=matches.iou >= MASK_IOU,
        super_classes=super_classes,
        promise=Promise.of(by.precision),
    )
    return Calibrated(scores, expected, thresholds)


def examples_of_objects(labels: pa.Table) -> list[Example]:
    """``pseudo_labels.v2`` of objects as examples.

    Accepted rows teach class, box and mask as far as each was accepted, with their weights; ignored ones make regions
    without gradient; rejected ones are background. Images with neither accepted nor ignored rows are left out: that a
    teacher sees nothing is no proof that nothing is there.
    """
    return examples_by_item(labels, lambda row: row["decision"] != "reject", _example)


def _example(rows: list[dict[str, Any]]) -> Example:
    return example_of(
        rows,
        objects=tuple(example_object(row) for row in rows if row["decision"] == "accept"),
        ignore_boxes=tuple(box_of(row) for row in rows if row["decision"] == "ignore"),
    )


def look_at_objects(accepted: pa.Table, truth: pa.Table, n: int, *, seed: int) -> dict[str, bool]:
    """label_id -> right, of a sample of accepted objects on images whose truth was hidden from the loop.

    Right is class and IoU .5 in COCO's greedy match of all accepted rows, so that a duplicate finds its object taken.
    Rows on crowds or void have no verdict.

    Args:
        accepted: ``pseudo_labels.v2`` of the images of ``truth``, all accepted rows of them.
        truth: ``labels.v1``.
        n, seed: of :func:`tasks.loop.audits.draw_audit`.
    """
    matches = match_candidates(accepted, truth)
    names = accepted["label_id"].to_pylist()
    right = {names[row]: bool(yes) for row, yes in zip(matches.row.tolist(), matches.correct.tolist(), strict=True)}
    sample = draw_audit(accepted, n, seed=seed)["label_id"].to_pylist()
    return {name: right[name] for name in sample if name in right}


class MaskedMethods(MatchedMethods):
    """What objects and panoptic segments share: right or wrong by COCO's match of masks."""

    score_floor = SCORE_FLOOR

    def compared(self, sure: pa.Table) -> pa.Table:
        """Without masks that have no pixel: nothing to match, and nothing that a person could take over."""
        return sure.filter(pc.and_(pc.is_valid(sure["rle"]), pc.greater(sure["area"], 0)))

    def match(self, candidates: pa.Table, labels: LabelSet) -> Matches:
        return match_candidates(candidates, labels.table)

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        return look_at_objects(accepted, truth.table, n, seed=seed)


class ObjectMethods(MaskedMethods):
    """Objects with masks, whose quality teachers measure; what they do not see is background."""

    @property
    def predictor_spec(self) -> PredictorSpec | None:
        return quality.spec_of(self.views)

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return quality.QualityPredictor(predictor, self.views)

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        return calibrate_objects(candidates, calibration, by, truth_per_image=labelled.truth_per_image())

    def banded(self, thresholds: ThresholdSet, candidates: pa.Table, num_images: int) -> ThresholdSet:
        return self.with_background(thresholds, candidates, num_images)

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_objects(labels)


def _open(recipe: TrainingRecipe, views: Sequence[str]) -> ObjectMethods:
    return ObjectMethods(views)


#: What kinds share whose candidates are right or wrong one by one.
object_loop = functools.partial(
    LoopKind,
    columns=COLUMNS,
    decided=DECIDED,
    candidates=object_candidates,
    item=item_of,
    iou=mask_iou,
    kept=kept_candidates,
    disagreements=to_files,
    read_disagreements=read_disagreements,
)
OBJECTS = object_loop(features=FEATURES, rule=decide_objects, open=_open)
