"""Points in the loop: how they are looked at, calibrated, taught and audited.

The classes that have thresholds are the points: the left eye, the nose. Each is certified by itself, or pooled where it
is labelled too rarely, so what is promised is that an accepted point is where it should be (``matching``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from infra.errors import UsageError
from modelkit import ClassInfo, Predictor, create_model, load
from modelkit.carriers.landmarks import KeypointSet
from tasks.engine.job import PredictorSpec
from tasks.engine.model_source import local_model
from tasks.labels.label_sets import LabelSet
from tasks.loop.audits import draw_audit
from tasks.loop.calibration import fit_calibration
from tasks.loop.matching import Matches
from tasks.loop.methods import (
    WATCHED_OBJECTS,
    Calibrated,
    CalibratedFor,
    LoopMethods,
    MatchedMethods,
    ObjectSource,
    objects_by_class,
)
from tasks.loop.selection import kept_candidates
from tasks.loop.thresholds import SCORE_FLOOR, Promise, certify_thresholds
from tasks.product import LoopKind
from tasks.products.landmarks import quality
from tasks.products.landmarks.disagreement_files import read_disagreements, to_files
from tasks.products.landmarks.loop_candidates import (
    COLUMNS,
    decide_points,
    examples_of_points,
    item_of,
    point_candidates,
    point_likeness,
)
from tasks.products.landmarks.matching import labelled_points, match_points
from tasks.products.landmarks.places import UsualPlace, usual_place
from tasks.products.landmarks.predictors import checked_detector
from tasks.products.landmarks.schema import MEASURED
from tasks.training.examples import Example
from tasks.training.recipe import TrainingRecipe

Finder = ObjectSource | UsualPlace


class PointMethods(MatchedMethods):
    """Points of objects; an object is a candidate as far as its points are.

    Args:
        recipe: of all models of the loop.
        views: see :class:`LoopMethods`.
        finder: of the objects that a top-down model looks at; None: not known yet, or the model finds them itself.
    """

    score_floor = SCORE_FLOOR
    least_truth = f"{WATCHED_OBJECTS} labelled points"
    evidence_unit = "labelled points"

    def __init__(self, recipe: TrainingRecipe, views: Sequence[str], finder: Finder | None = None) -> None:
        super().__init__(views)
        self._recipe, self._finder = recipe, finder
        self.points = KeypointSet.from_json(recipe.points)
        with torch.device("meta"):  # nothing is allocated
            self._top_down = create_model(recipe.architecture, **recipe.config).top_down

    def fitted(self, labels: LabelSet, objects: ObjectSource | None) -> LoopMethods:
        if not self._top_down:
            return super().fitted(labels, objects)
        if objects is not None:
            checked_detector(objects.detector, objects.classes)
            return PointMethods(self._recipe, self.views, objects)
        usual = usual_place(labels)
        if usual is None:
            raise UsageError(
                f"{self._recipe.architecture} looks at one object at a time, and nobody says where those of unlabelled "
                "images are: labelled ones are several in an image, or now here and now there",
                hint="--detector MODEL names who finds them; `visionmill train` makes one of the same labels",
            )
        return PointMethods(self._recipe, self.views, usual)

    @property
    def predictor_spec(self) -> PredictorSpec | None:
        options: dict[str, Any] = {"views": list(self.views)} if self.views else {}
        places: dict[str, Any] = {}
        if isinstance(self._finder, UsualPlace):
            options["usual"] = self._finder.to_json()
        elif self._finder is not None:
            found = self._finder
            options["detector"] = checked_detector(found.detector, found.classes).rows_digest
            options |= {"box_score": found.min_score, "box_classes": sorted(found.classes)}
            places["detector_from"] = found.detector
        if not options:
            return None
        return PredictorSpec(f"{quality.teacher.__module__}:teacher", options, MEASURED, places=places)

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return predictor.around(self._teacher)

    as_compared = as_on_unlabelled  # scores are comparable only where they were looked for in the same way

    def _teacher(self, plain: Predictor) -> Predictor:
        found = self._finder
        if isinstance(found, UsualPlace):
            return quality.TopDownTeacher(plain, found, self.views)
        if found is not None:
            detector = _detector(found.detector, str(plain.device), found.min_score)
            choice: dict[str, Any] = {"box_score": found.min_score, "box_classes": found.classes}
            return quality.TopDownTeacher(plain, detector, self.views, **choice)
        return quality.ViewsOfObjects(plain, self.views, self.points) if self.views else plain

    def promised(self, classes: Sequence[ClassInfo]) -> Sequence[ClassInfo]:
        return [ClassInfo(k, name) for k, name in enumerate(self.points.names, 1)]

    def truth(self, labels: LabelSet) -> dict[str, int]:
        return labelled_points(labels, self.points)

    def amounts(self, labels: LabelSet) -> dict[str, dict[str, int]]:
        return {name: {"points": count} for name, count in self.truth(labels).items()}

    def watched(self, gate: LabelSet) -> frozenset[str]:
        """Points, and of models that find objects themselves also these: they are judged by classes."""
        objects = {} if self._top_down else objects_by_class(gate)
        many = {name for name, count in objects.items() if count >= WATCHED_OBJECTS}
        return super().watched(gate) | many

    def match(self, candidates: pa.Table, labels: LabelSet) -> Matches:
        return match_points(candidates, labels, self.points, tells_classes=not self._top_down)

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        matches = self.match(candidates, calibration)
        scores, points = fit_calibration(matches), self.promised(calibration.classes)
        counts = self.truth(labelled)
        thresholds = certify_thresholds(
            matches,
            points,
            model_id=by.model_id,
            round_number=by.round_number,
            calibration_split=by.calibration_split,
            truth_per_image={each.id: counts[each.name] / max(len(labelled), 1) for each in points},
            expected_score=scores.apply(matches.label, matches.score),
            promise=Promise.of(by.precision),
            promises=by.promises(points, Promise.of),
        )
        return Calibrated(scores, None, thresholds)

    def examples(self, labels: pa.Table) -> list[Example]:
        own = self._recipe.class_infos[0].id if self._top_down else None
        return examples_of_points(labels, len(self.points), own_label=own)

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        matches = self.match(accepted, truth)
        names = accepted["label_id"].to_pylist()
        right = {names[row]: bool(yes) for row, yes in zip(matches.row.tolist(), matches.correct.tolist(), strict=True)}
        sample = draw_audit(accepted, n, seed=seed)["label_id"].to_pylist()
        return {name: right[name] for name in sample if name in right}


@functools.lru_cache(maxsize=2)
def _detector(name: str, device: str, min_score: float) -> Predictor:
    """Models of a loop look one after the other, all with the objects of one detector."""
    return load(local_model(name), device=device, min_score=min_score)


def _open(recipe: TrainingRecipe, views: Sequence[str]) -> PointMethods:
    points = KeypointSet.from_json(recipe.points) if recipe.points else None
    if points is None and "surface" in recipe.config.get("heads", {}):
        raise UsageError(
            f"{recipe.architecture} finds surfaces, and what the loop teaches are points",
            hint="`visionmill train` teaches it; models of points learn from labels that have some",
        )
    if points is None and recipe.config.get("num_keypoints") == 0:
        raise UsageError(
            f"{recipe.architecture} finds boxes without points, and what the loop teaches are points",
            hint="`visionmill train` teaches it; models of points learn from labels that have some",
        )
    if points is None:
        raise UsageError(
            f"the recipe {recipe.name} does not say what its points are",
            hint="one that is made of labels with points does: leave out --recipe, or `visionmill inspect --save` it",
        )
    if "hflip" in views and not points.flip_pairs:
        raise UsageError(
            "a mirror shows something else here: none of these points change places in it",
            hint="leave out --tta hflip, or give the labels names that tell left from right",
        )
    return PointMethods(recipe, views)


POINTS = LoopKind(
    columns=COLUMNS,
    decided=(),
    features=(),
    candidates=point_candidates,
    item=item_of,
    rule=decide_points,
    open=_open,
    iou=point_likeness,
    kept=kept_candidates,
    disagreements=to_files,
    read_disagreements=read_disagreements,
    unit="points",
    pieces="points",
)
