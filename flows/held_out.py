"""Predictions on labels that their model never saw: what thresholds are decided by.

*holdout*: the teacher looks at C, which is kept out of every training. *crossfit*: there is no C. L is cut into folds
by group; for each fold a model is trained on the others, in the way of the teacher, and looks at it. So every label
both teaches and calibrates. It is the precision of the fold models that is certified; the teacher, of the same recipe
with more labels, is taken to be as good (an audit of the accepted labels asks whether it is). That holds for the first
teacher only: a student has learnt from pseudo-labels that go back to every fold.
"""

from __future__ import annotations

import pyarrow as pa

from flows.round_steps import Loop, train_supervised
from infra.errors import UsageError
from tasks.labels.label_sets import LabelSet
from tasks.loop import champion as champions
from tasks.loop.candidates import Teacher
from tasks.loop.schemas import MODELS
from tasks.loop.splits import fold_groups
from tasks.loop.teaching import candidates_on
from tasks.output import tables


def check_can_be_calibrated(loop: Loop, champion: champions.Model) -> None:
    """Refuse cross-fitting for a teacher that is not the first model of these labels, all of them in L.

    What is unlabelled may have changed: an earlier loop's division of the labels is kept, so L is the same.

    Raises:
        UsageError: it may have learnt from labels that are to calibrate it.
    """
    if not loop.parameters.crossfit:
        return
    rows = tables.read(loop.store, MODELS).to_pylist()
    known = {(row["model_id"], row["role"], row["label_set_id"]) for row in rows}
    first = (champion.model_id, "teacher", loop.data.labels.label_set_id) in known
    if not first or loop.data.manifest.counts.get("C"):
        raise UsageError(
            f"cross-fitting calibrates the first model of these labels only, and {champion.model_id} is another one",
            hint="--calibration holdout with some new labels for C, or another --output",
        )


def held_out_candidates(loop: Loop, champion: champions.Model, teacher: Teacher, number: int) -> pa.Table:
    """``candidates.v1`` on the labels that calibrate, each by a model that was not trained on it."""
    if not loop.parameters.crossfit:
        name = f"round {number}: look at C"
        return loop.step(name, _look, loop, champion.weights_uri, loop.data.split("C"), teacher, number)
    labels = loop.data.split("L")
    parts = fold_groups(labels, loop.parameters.folds, salt=str(loop.parameters.seed))
    found = []
    for fold, part in enumerate(parts, 1):
        name, others = f"fold-{fold}", [image_id for other in parts if other is not part for image_id in other]
        uri, _ = loop.step(f"round {number}: train {name}", train_supervised, loop, labels.only(others), role=name)
        found.append(loop.step(f"round {number}: look at {name}", _look, loop, uri, labels.only(part), teacher, number))
    return pa.concat_tables(found)


def _look(loop: Loop, weights_uri: str, labels: LabelSet, teacher: Teacher, number: int) -> pa.Table:
    predictor = loop.task.as_on_unlabelled(loop.predictor(weights_uri))
    return candidates_on(
        predictor, labels, teacher,
        task=loop.task.name, floor=loop.task.score_floor, split="C", run_id=loop.run_id, round_number=number,
    )  # fmt: skip
