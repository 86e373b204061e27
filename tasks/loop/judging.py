"""A model on the gate set: its figures, ready to be resampled, and how well its calibrated scores keep their word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

import modelkit
from modelkit import Predictor
from tasks.engine.model_source import local_model
from tasks.evaluation import figures
from tasks.evaluation.bootstrap import PairedDifference, compare
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.folds import fold_groups
from tasks.labels.label_sets import LabelSet
from tasks.loop.candidates import Asked, candidates_on
from tasks.loop.methods import LabelledPredictions, LoopMethods
from tasks.product import Judgement

_HALVES = 2


@dataclass(frozen=True, slots=True)
class OnGate:
    """A model on the gate set.

    Args:
        judged: its figures.
        d_ece: of its scores there after calibration on labels that it never saw; NaN where there are none.
    """

    judged: Judgement
    d_ece: float

    def to_json(self) -> dict[str, Any]:
        """The figures as they are stored."""
        return figures.to_json(self.judged)


def load_predictor(weights_uri: str, device: str = "cpu", looks: Mapping[str, Any] | None = None) -> Predictor:
    """A trained model of the loop by its URI.

    Args:
        looks: how it looks at images: ``detections``, ``tile`` and ``overlap`` of ``modelkit.load``.
    """
    return modelkit.load(local_model(weights_uri), device=device, **(looks or {}))


def judge_on_gate(
    methods: LoopMethods,
    predictor: Predictor,
    calibration: LabelSet | None,
    gate: LabelSet,
    split_items: pa.Table,
    asked: Asked,
) -> OnGate:
    """Judge a model on the gate set.

    Args:
        methods: of the loop.
        predictor: the model.
        calibration: labels that it never saw; None where there are none: then the scores on each half of the gate set
            are calibrated on the other half, and a gate set of one group, which has no halves, measures nothing.
        gate: the gate set.
        split_items: ``split_items.v2``.
        asked: its lineage and the round.
    """

    def look(labels: LabelSet) -> LabelledPredictions:
        found = candidates_on(methods.as_on_unlabelled(predictor), labels, split_items, asked)
        return LabelledPredictions(found, labels)

    on_gate = look(gate)
    if calibration is not None:
        pairs = [(look(calibration), on_gate)]
    elif len(set(gate.table["group_id"].to_pylist())) < _HALVES:
        return OnGate(evaluate_predictor(predictor, gate), math.nan)
    else:
        one, other = (on_gate.only(half) for half in fold_groups(gate, _HALVES, salt=""))
        pairs = [(one, other), (other, one)]
    return OnGate(evaluate_predictor(predictor, gate), methods.calibrated_error(pairs))


def difference(candidate: Judgement, other: Judgement, gate: LabelSet, *, seed: int) -> PairedDifference:
    """Paired bootstrap over the groups of the gate set."""
    return compare(candidate, other, groups=gate.table["group_id"].to_pylist(), seed=seed)
