"""Predictions on labels that their model never saw: what thresholds are decided by.

*holdout*: the teacher looks at the calibration split, which is kept out of every training. *crossfit*: there is none.
What trains is cut into folds by group; for each fold a model is trained on the others, in the way of the teacher, and
looks at it. So every label both teaches and calibrates. It is the precision of the fold models that is certified; the
teacher, of the same recipe with more labels, is taken to be as good (an audit of the accepted labels asks whether it
is). That holds for the first teacher only: a student has learnt from pseudo-labels that go back to every fold.
"""

from __future__ import annotations

import pyarrow as pa

from flows.round_steps import Running, train_supervised
from tasks.labels.folds import fold_groups
from tasks.loop.candidates import Teacher
from tasks.loop.champion import Model
from tasks.loop.rounds import look


def held_out_candidates(running: Running, champion: Model, teacher: Teacher, number: int) -> pa.Table:
    """``candidates.v2`` on the labels that calibrate, each by a model that was not trained on it."""
    loop, step, asked = running.loop, running.step, running.parameters
    labels = loop.calibrating
    if not asked.crossfit:
        name = f"round {number}: look at held-out labels"
        return step(name, look, loop, champion.weights_uri, labels, teacher, number)
    parts = fold_groups(labels, asked.folds, salt=str(asked.seed))
    found = []
    for fold, part in enumerate(parts, 1):
        name, others = f"fold-{fold}", [image_id for other in parts if other is not part for image_id in other]
        train = f"round {number}: train {name}"
        uri, _ = step(train, train_supervised, running, labels.only(others), role=name)
        found.append(step(f"round {number}: look at {name}", look, loop, uri, labels.only(part), teacher, number))
    return pa.concat_tables(found)
