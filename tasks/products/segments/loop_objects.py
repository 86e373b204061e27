"""Objects with boxes and masks in the loop: how they are looked at, calibrated and audited."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from modelkit import Predictor
from tasks.engine.job import PredictorSpec
from tasks.labels.label_sets import LabelSet
from tasks.loop.audits import draw_audit
from tasks.loop.calibration import fit_calibration
from tasks.loop.matching import Matches
from tasks.loop.methods import Calibrated, CalibratedFor, MatchedMethods
from tasks.loop.selection import floats, kept_candidates, quality_feature
from tasks.loop.thresholds import SCORE_FLOOR, Promise, ThresholdSet, certify_thresholds
from tasks.product import LoopKind
from tasks.products.segments import quality
from tasks.products.segments.disagreement_files import read_disagreements, to_files
from tasks.products.segments.loop_candidates import (
    COLUMNS,
    DECIDED,
    decide_objects,
    examples_of_objects,
    item_of,
    mask_iou,
    object_candidates,
)
from tasks.products.segments.matching import MASK_IOU, match_candidates
from tasks.training.recipe import TrainingRecipe

FEATURES = ("q_stability", "q_tta")


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
        promises=by.promises(calibration.classes, Promise.of),
        geometry_precision=by.geometry,
    )
    return Calibrated(scores, expected, thresholds)


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
    certifies_geometry = True

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
        return predictor.around(lambda plain: quality.QualityPredictor(plain, self.views))

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        return calibrate_objects(candidates, calibration, by, truth_per_image=labelled.truth_per_image())

    def banded(self, thresholds: ThresholdSet, candidates: pa.Table, num_images: int) -> ThresholdSet:
        return self.with_background(thresholds, candidates, num_images)

    examples = staticmethod(examples_of_objects)


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
