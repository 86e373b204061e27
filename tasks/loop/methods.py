"""What a kind does in the turns of the loop, as ``LoopKind.open`` gives it; all else is the same for every kind."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute

from infra.errors import UsageError
from modelkit import ClassInfo, Predictor
from tasks.engine.job import PredictorSpec
from tasks.evaluation.calibrators import d_ece
from tasks.labels.label_sets import LabelSet
from tasks.loop.calibration import Calibration, fit_calibration
from tasks.loop.certified import FIRST_COUNT, LEVEL, fewest
from tasks.loop.matching import Matches
from tasks.loop.promises import GEOMETRY_PRECISION
from tasks.loop.thresholds import LOWER_BY, ThresholdSet, scores_by_class, with_bands
from tasks.training.examples import Example

P = TypeVar("P")
WATCHED_OBJECTS = 30


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Calibrators of score and quality, and the thresholds; bands need the scores on unlabelled items, too."""

    scores: Calibration
    quality: Calibration | None
    thresholds: ThresholdSet


@dataclass(frozen=True, slots=True)
class CalibratedFor:
    """Whose scores are calibrated, when, on which division of the labels, and what precision is promised.

    Args:
        precision: of what is accepted. by_name: class name -> another one.
        geometry: of boxes and masks of what is accepted.
    """

    model_id: str
    round_number: int
    calibration_split: str
    seed: int
    precision: float
    by_name: Mapping[str, float] = field(default_factory=dict)
    geometry: float = GEOMETRY_PRECISION

    def promises(self, classes: Iterable[ClassInfo], of: Callable[[float], P]) -> dict[int, P]:
        """Class id -> its promise, of those that are promised another precision; ``of`` makes it of that."""
        return {each.id: of(self.by_name[each.name]) for each in classes if each.name in self.by_name}


@dataclass(frozen=True, slots=True)
class LabelledPredictions:
    """What a model found on labelled images: ``candidates.v2``, and the labels."""

    candidates: pa.Table
    labels: LabelSet

    def only(self, image_ids: Sequence[str]) -> LabelledPredictions:
        """On some of the images."""
        here = pa.compute.is_in(self.candidates["image_id"], pa.array(image_ids, pa.string()))
        return LabelledPredictions(self.candidates.filter(here), self.labels.only(image_ids))


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """Who says where the objects of unlabelled items are, for models that look at one object at a time.

    Args:
        detector: a model's name, or weights.
        min_score: less confident boxes are not looked at.
        classes: names of the classes that are looked at; none: all.
    """

    detector: str
    min_score: float
    classes: tuple[str, ...]


class LoopMethods(ABC):
    """What a kind does in the turns of the loop.

    Args:
        views: names in ``modelkit.tta.VIEWS`` of what teachers look at beside the plain view, in any order.

    Attributes:
        score_floor: less confident predictions are no candidates.
        certifies_geometry: boxes and masks are promised a precision of their own.
    """

    score_floor: float
    certifies_geometry = False
    least_truth = f"{WATCHED_OBJECTS} true objects"  # from which the gate watches a class, in words
    evidence_unit = "true objects"

    def __init__(self, views: Iterable[str] = ()) -> None:
        self.views = tuple(sorted(set(views)))

    def fitted(self, labels: LabelSet, objects: ObjectSource | None) -> LoopMethods:
        """The same for these labels: a kind whose models look at one object at a time learns here where those are.

        Args:
            labels: that train.
            objects: who finds the objects of unlabelled items; None: nobody was named.

        Raises:
            UsageError: somebody was named whom nobody needs, or the other way round.
        """
        if objects is not None:
            raise UsageError(
                "these models find their objects themselves: they look at no boxes of others",
                hint="leave out --detector",
            )
        return self

    @property
    def tta_spec(self) -> str:
        """The views as the lineage has them: JSON."""
        return json.dumps(list(self.views))

    @property
    def predictor_spec(self) -> PredictorSpec | None:
        """What workers look at unlabelled items with; None: as in any job."""
        return None

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        """A model as it looks at unlabelled items, for looking at labelled ones in the same way."""
        return predictor

    def as_compared(self, predictor: Predictor) -> Predictor:
        """A model as it looks at what it is compared on with the champion."""
        return predictor

    def compared(self, sure: pa.Table) -> pa.Table:
        """What people compare, of the rows that a model is sure of."""
        return sure

    @abstractmethod
    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        """Calibrators and thresholds.

        Args:
            candidates: ``candidates.v2`` on ``calibration``, of models that never saw it.
            calibration, labelled: the labels that calibrate, and those that train.
            by: who predicted.
        """

    def promised(self, classes: Sequence[ClassInfo]) -> Sequence[ClassInfo]:
        """The classes that have a threshold, of those of the labels."""
        return classes

    def truth(self, labels: LabelSet) -> dict[str, int]:
        """How much of each class that has a threshold is labelled: objects, crowds apart, unless a kind counts others.

        In units of ``evidence_unit``.
        """
        return objects_by_class(labels)

    def amounts(self, labels: LabelSet) -> dict[str, dict[str, int]]:
        """By class what is labelled of it, unit -> number, the chief unit first; for people."""
        found = {each.name: {"objects": 0, "pixels": 0} for each in self.promised(labels.classes)}
        for names, areas in zip(labels.table["names"].to_pylist(), labels.table["areas"].to_pylist(), strict=True):
            for name, area in zip(names, areas, strict=True):
                found[name]["objects"] += 1
                found[name]["pixels"] += round(area)
        return found

    def evidence(self, calibrating: LabelSet, promise_of: Callable[[str], float]) -> dict[str, Evidence]:
        """By class name what the labels that calibrate can prove, known before anything is trained.

        Args:
            promise_of: class name -> the precision that is promised of it.
        """
        counts = self.truth(calibrating)
        lowest = {each.name: promise_of(each.name) - LOWER_BY for each in self.promised(calibrating.classes)}
        return {
            name: Evidence(counts[name], fewest(low), sum(counts.values()), math.ceil(FIRST_COUNT * low))
            for name, low in lowest.items()
        }

    def watched(self, gate: LabelSet) -> frozenset[str]:
        """Names of the classes of which the gate set holds enough truth to see them fall."""
        counts = self.truth(gate)
        return frozenset(name for name, count in counts.items() if count >= WATCHED_OBJECTS)

    def banded(self, thresholds: ThresholdSet, candidates: pa.Table, num_images: int) -> ThresholdSet:
        """The thresholds with the lower ends of their bands; unless a kind says otherwise, nothing is background.

        Args:
            thresholds: without bands.
            candidates: ``candidates.v2`` on the unlabelled items.
            num_images: how many items these are, also those without candidates.
        """
        return thresholds

    @abstractmethod
    def calibrated_error(self, pairs: Sequence[tuple[LabelledPredictions, LabelledPredictions]]) -> float:
        """D-ECE of scores on labels, calibrated on others; NaN where nothing was found.

        Args:
            pairs: (what calibrates, what is judged); all that is judged counts together.
        """

    @abstractmethod
    def calibrated(self, found: LabelledPredictions) -> Calibration | None:
        """Calibrators of scores; None where a model found nothing."""

    @abstractmethod
    def examples(self, labels: pa.Table) -> list[Example]:
        """``pseudo_labels.v2`` as a training set."""

    @abstractmethod
    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        """label_id -> right, of at most ``n`` accepted labels that are drawn and held against truth."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the labels that calibrate hold of a class.

    Args:
        pieces: true objects of it, or images with it. needed: without so many it abstains, whatever the model finds.
        together: pieces of all classes, or all images. needed_together: without so many all abstain.
    """

    pieces: int
    needed: int
    together: int
    needed_together: int

    @property
    def best_precision(self) -> float | None:
        """The highest that these pieces can certify, if the model is right about every one; None without any."""
        return LEVEL ** (1 / self.pieces) if self.pieces else None

    @property
    def is_too_little(self) -> bool:
        """Whether the class abstains for sure."""
        return self.pieces < self.needed or self.together < self.needed_together


def objects_by_class(labels: LabelSet) -> dict[str, int]:
    """True objects by class name, crowds apart."""
    counts = Counter({each.name: 0 for each in labels.classes})
    for names, crowds in zip(labels.table["names"].to_pylist(), labels.table["is_crowd"].to_pylist(), strict=True):
        counts.update(name for name, crowd in zip(names, crowds, strict=True) if not crowd)
    return dict(counts)


class MatchedMethods(LoopMethods):
    """Methods of kinds whose candidates are right or wrong one by one, by a match with labelled objects."""

    @abstractmethod
    def match(self, candidates: pa.Table, labels: LabelSet) -> Matches:
        """Which candidates are right."""

    def with_background(self, thresholds: ThresholdSet, candidates: pa.Table, num_images: int) -> ThresholdSet:
        """Bands below which candidates are background, for kinds that have one."""
        return with_bands(thresholds, scores_by_class(candidates), num_images)

    def calibrated_error(self, pairs: Sequence[tuple[LabelledPredictions, LabelledPredictions]]) -> float:
        confidence, correct = [], []
        for calibrating, judged in pairs:
            calibration = self.calibrated(calibrating)
            if calibration is None:
                return float("nan")
            found = self.match(judged.candidates, judged.labels)
            confidence.append(calibration.apply(found.label, found.score))
            correct.append(found.correct)
        return d_ece(np.concatenate(confidence), np.concatenate(correct))

    def calibrated(self, found: LabelledPredictions) -> Calibration | None:
        matches = self.match(found.candidates, found.labels)
        return fit_calibration(matches) if len(matches) else None
