"""What a model is worth on G: the metric, ready to be resampled, and how well its calibrated scores keep their word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import modelkit
from modelkit import Predictor
from tasks.engine.model_source import local_model
from tasks.evaluation.bootstrap import PairedDifference, compare
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.label_sets import LabelSet
from tasks.loop.candidates import Teacher
from tasks.loop.loop_tasks import Looked, LoopTask
from tasks.loop.splits import fold_groups
from tasks.loop.teaching import candidates_on
from tasks.product import Judgement


@dataclass(frozen=True, slots=True)
class Worth:
    """A model on the gate set.

    Args:
        judged: its metrics.
        d_ece: of its scores on G after calibration on labels that it never saw.
    """

    judged: Judgement
    d_ece: float


def load_predictor(weights_uri: str, device: str = "cpu") -> Predictor:
    """A trained model of the loop by its URI."""
    return modelkit.load(local_model(weights_uri), device=device)


def worth_of(
    task: LoopTask,
    predictor: Predictor,
    teacher: Teacher,
    calibration: LabelSet | None,
    gate: LabelSet,
    *,
    run_id: str,
    round_number: int,
) -> Worth:
    """Judge a model on G; its scores are calibrated on C, which it was never trained on.

    Where there is no C (None), the scores on each half of G are calibrated on the other half.
    """

    def look(labels: LabelSet, split: str) -> Looked:
        found = candidates_on(
            task.as_on_unlabelled(predictor), labels, teacher,
            task=task.name, floor=task.score_floor, split=split, run_id=run_id, round_number=round_number,
        )  # fmt: skip
        return Looked(found, labels)

    on_gate = look(gate, "G")
    if calibration is not None:
        pairs = [(look(calibration, "C"), on_gate)]
    else:
        one, other = (on_gate.only(half) for half in fold_groups(gate, 2, salt=""))
        pairs = [(one, other), (other, one)]
    return Worth(evaluate_predictor(predictor, gate), task.calibrated_error(pairs))


def difference(candidate: Judgement, other: Judgement, gate: LabelSet, *, seed: int) -> PairedDifference:
    """Paired bootstrap over the groups of G."""
    return compare(candidate, other, groups=gate.table["group_id"].to_pylist(), seed=seed)


def objects_by_class(labels: LabelSet) -> dict[str, int]:
    """True objects by class name, crowds apart."""
    counts = Counter({each.name: 0 for each in labels.classes})
    for names, crowds in zip(labels.table["names"].to_pylist(), labels.table["is_crowd"].to_pylist(), strict=True):
        counts.update(name for name, crowd in zip(names, crowds, strict=True) if not crowd)
    return dict(counts)
