"""What the turns of the loop do differently for each task; all else is the same for all of them.

Selection, loss and metric of a task are named in ``tasks.loop.rules``. A further task is one more entry there
and one more class here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from infra.errors import UsageError
from modelkit import ClassInfo, Predictor, create_model
from tasks.engine.job import PredictorSpec
from tasks.labels.label_sets import LabelSet
from tasks.loop import confidence, quality
from tasks.loop.audits import look_at_objects, look_at_pixels
from tasks.loop.calibration import Calibration, d_ece, fit_calibration
from tasks.loop.candidates import RoundCandidates
from tasks.loop.confidence import ConfidencePredictor, background_of
from tasks.loop.matching import match_candidates
from tasks.loop.pixel_thresholds import PixelPromise
from tasks.loop.pixels import PixelCounts, by_class, calibrate_pixels, count_pixels, pixel_error
from tasks.loop.quality import QualityPredictor
from tasks.loop.round_calibration import RoundCalibration, calibrate_instances, calibrate_semantic
from tasks.loop.rules import MIN_AREA_PX
from tasks.loop.teaching import SCORE_FLOOR, examples_of_objects, examples_of_pixels, examples_of_segments
from tasks.loop.thresholds import Promise, ThresholdSet, scores_by_class, with_bands
from tasks.training.examples import Example
from tasks.training.recipe import TrainingRecipe


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose scores are calibrated, when, on which C, and what precision of accepted labels is promised."""

    model_id: str
    round_number: int
    calibration_split: str
    seed: int
    precision: float


@dataclass(frozen=True, slots=True)
class Looked:
    """What a model found on labelled images: ``candidates.v1``, and the labels."""

    candidates: pa.Table
    labels: LabelSet

    def only(self, image_ids: Sequence[str]) -> Looked:
        """On some of the images."""
        here = pa.compute.is_in(self.candidates["image_id"], pa.array(image_ids, pa.string()))
        return Looked(self.candidates.filter(here), self.labels.only(image_ids))


class LoopTask(ABC):
    """What a task brings to the turns of the loop.

    Args:
        views: names in ``modelkit.tta.VIEWS`` of what teachers look at beside the plain view, sorted.

    Attributes:
        name: a key of ``RULES``.
        score_floor: less confident predictions are no candidates.
        predictor_factory: makes the predictors that look at U, see ``JobSpec``; None: they look as in any job.
        schema: id of the schema that these fill; None: the one of plain jobs.
    """

    name: str
    score_floor: float
    predictor_factory: str | None
    schema: str | None

    def __init__(self, views: Sequence[str] = ()) -> None:
        self.views = tuple(views)

    @property
    def predictor_spec(self) -> PredictorSpec | None:
        """How workers look at U; None: as in any job."""
        if self.predictor_factory is None:
            return None
        return PredictorSpec(self.predictor_factory, {"views": list(self.views)} if self.views else {}, self.schema)

    @property
    def tta_spec(self) -> str:
        """The views as the lineage has them: JSON."""
        return json.dumps(list(self.views))

    @abstractmethod
    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        """A model as it looks at U, for looking at C and G in the same way."""

    @abstractmethod
    def calibrate(self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: Whose) -> RoundCalibration:
        """Calibrators and thresholds from the candidates on C.

        Args:
            candidates: ``candidates.v1`` on C.
            calibration, labelled: C and L.
            by: who predicted.
        """

    @abstractmethod
    def banded(self, thresholds: ThresholdSet, found: RoundCandidates) -> ThresholdSet:
        """The thresholds with the lower ends of their bands, from what was found on U."""

    @abstractmethod
    def calibrated_error(self, pairs: Sequence[tuple[Looked, Looked]]) -> float:
        """D-ECE of scores on labels, calibrated on others; NaN where nothing was found.

        Args:
            pairs: (what calibrates, what is judged); all that is judged counts together.
        """

    @abstractmethod
    def calibrated(self, looked: Looked) -> Calibration | None:
        """Calibrators of scores, from what a model found on labelled images; None where it found nothing."""

    def as_compared(self, predictor: Predictor) -> Predictor:
        """A model as it looks at what it is compared on with the champion."""
        return predictor

    def compared(self, sure: pa.Table) -> pa.Table:
        """What people compare, of the rows that a model is sure of."""
        return sure

    @abstractmethod
    def examples(self, labels: pa.Table) -> list[Example]:
        """``pseudo_labels.v1`` as a training set."""

    @abstractmethod
    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        """label_id -> right, of at most ``n`` accepted labels that are drawn and held against truth."""


class InstanceTask(LoopTask):
    """Objects with masks."""

    name = "instance"
    score_floor = SCORE_FLOOR
    predictor_factory: str | None = quality.FACTORY
    schema: str | None = "segments_measured.v1"

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return QualityPredictor(predictor, self.views)

    def calibrate(self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: Whose) -> RoundCalibration:
        return calibrate_instances(
            candidates,
            calibration,
            truth_per_image=labelled.truth_per_image(),
            model_id=by.model_id,
            round_number=by.round_number,
            calibration_split=by.calibration_split,
            task=self.name,
            super_classes=self.super_classes(calibration),
            promise=Promise.of(by.precision),
        )

    def super_classes(self, labels: LabelSet) -> dict[int, str] | None:
        """By class id the group whose small classes are pooled; None: all classes are one group."""
        return None

    def banded(self, thresholds: ThresholdSet, found: RoundCandidates) -> ThresholdSet:
        return with_bands(thresholds, scores_by_class(found.candidates), len(found.images))

    def calibrated_error(self, pairs: Sequence[tuple[Looked, Looked]]) -> float:
        confidence, correct = [], []
        for calibrating, judged in pairs:
            calibration = self.calibrated(calibrating)
            if calibration is None:
                return float("nan")
            found = match_candidates(judged.candidates, judged.labels.table)
            confidence.append(calibration.apply(found.class_id, found.score))
            correct.append(found.correct)
        return d_ece(np.concatenate(confidence), np.concatenate(correct))

    def calibrated(self, looked: Looked) -> Calibration | None:
        matches = match_candidates(looked.candidates, looked.labels.table)
        return fit_calibration(matches) if len(matches) else None

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_objects(labels)

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        return look_at_objects(accepted, truth.table, n, seed=seed)


class PanopticTask(InstanceTask):
    """Things and stuff: every segment of a panoptic map is a candidate, right as panoptic quality counts it.

    Args:
        things: class ids of things.
    """

    name = "panoptic"
    predictor_factory = None
    schema = None

    def __init__(self, things: Iterable[int]) -> None:
        super().__init__()
        self.things = frozenset(things)

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return predictor

    def super_classes(self, labels: LabelSet) -> dict[int, str] | None:
        return {each.id: "things" if each.id in self.things else "stuff" for each in labels.classes}

    def banded(self, thresholds: ThresholdSet, found: RoundCandidates) -> ThresholdSet:
        return thresholds  # nothing becomes background

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_segments(labels, self.things)


class SemanticTask(LoopTask):
    """A class for every pixel.

    Args:
        background: class of what no object covers; None where every pixel has a class of its own.
        views: see :class:`LoopTask`.
    """

    name = "semantic"
    score_floor = 0.0  # pixels of the lowest level are candidates, too: a fifth of all has to be accepted
    predictor_factory = confidence.FACTORY
    schema = None

    def __init__(self, background: ClassInfo | None, views: Sequence[str] = ()) -> None:
        super().__init__(views)
        self.background = background

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return ConfidencePredictor(predictor, self.views)

    @property
    def _background_id(self) -> int | None:
        return None if self.background is None else self.background.id

    def calibrate(self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: Whose) -> RoundCalibration:
        return calibrate_semantic(
            candidates,
            calibration,
            background=self.background,
            model_id=by.model_id,
            round_number=by.round_number,
            calibration_split=by.calibration_split,
            seed=by.seed,
            promise=PixelPromise.of(by.precision),
        )

    def banded(self, thresholds: ThresholdSet, found: RoundCandidates) -> ThresholdSet:
        return thresholds  # nothing becomes background

    def calibrated_error(self, pairs: Sequence[tuple[Looked, Looked]]) -> float:
        errors, pixels = [], []
        for calibrating, judged in pairs:
            known, found = self._counts(calibrating), self._counts(judged)
            errors.append(pixel_error(calibrate_pixels(known), found))
            pixels.append(int(found.total.sum()))
        return float(np.average(errors, weights=pixels)) if sum(pixels) else float("nan")

    def calibrated(self, looked: Looked) -> Calibration | None:
        return calibrate_pixels(self._counts(looked))

    def as_compared(self, predictor: Predictor) -> Predictor:
        return ConfidencePredictor(predictor)

    def compared(self, sure: pa.Table) -> pa.Table:
        return by_class(sure, self._background_id, MIN_AREA_PX)

    def _counts(self, looked: Looked) -> PixelCounts:
        ids = [each.id for each in looked.labels.classes] + ([] if self.background is None else [self.background.id])
        return count_pixels(looked.candidates, looked.labels.table, ids, self._background_id)

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_pixels(labels, self._background_id)

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        return look_at_pixels(accepted, truth.table, n, background=self._background_id, seed=seed)


DEFAULT_RECIPES = {"instance": "digitscape", "semantic": "digitscape_unet", "panoptic": "digitscape_panoptic"}
"""What is trained where no recipe is named, by task; its keys are the tasks that the loop teaches."""


def loop_task(name: str, recipe: TrainingRecipe, task_of_model: str, views: Iterable[str] = ()) -> LoopTask:
    """The task of a loop.

    Args:
        name: what was asked for.
        recipe: of all models of the loop.
        task_of_model: what its architecture does.
        views: names in ``modelkit.tta.VIEWS``, in any order.

    Raises:
        UsageError: the model does something else, or views for a task that takes none.
    """
    if name != task_of_model:
        raise UsageError(
            f"the loop was asked to teach {name} segmentation; {recipe.architecture} does {task_of_model}",
            hint=f"--task takes {', '.join(DEFAULT_RECIPES)}; --recipe names a model that does it",
        )
    ordered = sorted(set(views))
    if name == InstanceTask.name:
        return InstanceTask(ordered)
    if name == PanopticTask.name:
        if ordered:
            raise UsageError("panoptic teachers look at one view: segments of several maps are not merged")
        return PanopticTask(each.id for each in recipe.class_infos if each.is_thing)
    with torch.device("meta"):  # nothing is allocated
        return SemanticTask(background_of(create_model(recipe.architecture, **recipe.config)), ordered)
