"""The models before the first round, and one round: teach, select, train, judge, decide; here is the order alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flows.held_out import held_out_candidates
from flows.round_steps import Running, audit, infer, report_round, train_baseline, train_supervised
from flows.train import carry_out
from infra.store import open_store
from infra.telling import tell
from modelkit import Weights
from tasks.loop.balance import balanced
from tasks.loop.candidates import Teacher, read_candidates
from tasks.loop.champion import Model, read_pointer
from tasks.loop.journal import RoundStart, start_round
from tasks.loop.judging import load_predictor
from tasks.loop.loops import Loop, check_can_be_calibrated, job_for
from tasks.loop.methods import Calibrated
from tasks.loop.records import remember_model, teacher_of, train_set_of
from tasks.loop.rounds import (
    NOTHING_ACCEPTED,
    RoundOutcome,
    ask_the_gate,
    calibrate,
    compare_models,
    heartbeats_of,
    measure,
    promote_first,
    promote_or_wait,
    remember_round,
)
from tasks.loop.selection import Selection, changed_share, remember_selection, select, train_set_id
from tasks.loop.split_names import TRAIN
from tasks.loop.splits import same_gate
from tasks.loop.thresholds import ThresholdSet
from tasks.training.job import TrainingJob


def begin(running: Running) -> None:
    """The supervised model becomes the first champion, unless the output has one; it is nobody's student."""
    loop = running.loop
    if read_pointer(loop.store)[0].champion is not None:
        return
    uri, record = train_supervised(running, loop.data.split(TRAIN), role="teacher")
    promote_first(loop, _model(loop, uri, record, 0))


@dataclass(frozen=True, slots=True)
class Chosen:
    """A round up to what its student is to learn.

    Args:
        number: of the round. start: its teacher, and the look at the gate set that it takes.
        found: ``candidates.v2`` of the teacher on unlabelled items; held_out: on labels that it never saw.
        calibrated: on those. selection: by that. train_set_id: names labels and selection together.
        before: the round before.
    """

    number: int
    start: RoundStart
    found: pa.Table
    held_out: pa.Table
    calibrated: Calibrated
    selection: Selection
    train_set_id: str
    before: RoundOutcome | None

    @property
    def thresholds(self) -> ThresholdSet:
        """What decided."""
        return self.calibrated.thresholds

    def outcome(self, **more: Any) -> RoundOutcome:
        """What came of the round; without more of it nothing was trained."""
        judged = ("candidate_id", "verdict", "gate_metric", "champion_metric", "baseline_metric", "entropy")
        decided: dict[str, Any] = {**dict.fromkeys(judged), "waits": False, **more}
        return RoundOutcome(
            number=self.number,
            teacher_id=self.start.teacher.model_id,
            train_set_id=self.train_set_id,
            accepted=self.selection.accepted_by_name(),
            selection=self.selection,
            abstaining={each.name: each.note for each in self.thresholds.classes if each.t_hi is None},
            changed_share=changed_share(self.before.selection if self.before else None, self.selection),
            **decided,
        )


def turn(running: Running, number: int, before: RoundOutcome | None) -> RoundOutcome:
    """One round, from the champion's labels to the gate's decision; it ends where nothing was accepted."""
    loop, step = running.loop, running.step
    chosen = _choose(running, number, before)
    taught = balanced(chosen.selection, chosen.thresholds)
    pseudo = step(
        f"round {number}: remember selection", remember_selection, loop.store, chosen.selection, taught, loop.methods
    )
    if pseudo is None:
        tell(f"round {number}: {NOTHING_ACCEPTED}")
        outcome = chosen.outcome()
        remember_round(loop, outcome, chosen.thresholds, chosen.start)
    else:
        outcome = _judged(running, chosen, pseudo)
    step(f"round {number}: write report", report_round, loop)
    return outcome


def _choose(running: Running, number: int, before: RoundOutcome | None) -> Chosen:
    """The champion looks at unlabelled items and at labels that it never saw, which decide what of it is accepted."""
    loop, step = running.loop, running.step
    now = read_pointer(loop.store)[0].champion
    assert now is not None  # begin() saw to it
    gates = same_gate(loop.store, loop.data.items, loop.data.manifest)
    start = start_round(loop.store, loop.run_id, number, now, gates)
    champion = start.teacher
    check_can_be_calibrated(loop, champion)
    teacher = _as_teacher(loop, champion)
    step(f"round {number}: infer", infer, running, champion)
    inferred, asked = open_store(loop.inference_uri(champion)), loop.asked(teacher, number)
    found, images = step(f"round {number}: read candidates", read_candidates, inferred, loop.data.items, asked)
    held_out = held_out_candidates(running, champion, teacher, number)
    calibrated = step(f"round {number}: calibrate", calibrate, loop, teacher, held_out, found, images, number)
    selection = step(
        f"round {number}: select", select, found, images, thresholds=calibrated.thresholds, scores=calibrated.scores,
        quality=calibrated.quality, previous=None if before is None else before.selection.labels,
    )  # fmt: skip
    division = loop.data.manifest.manifest_sha256
    set_id = train_set_id(selection, label_set_id=loop.data.labels.label_set_id, splits_manifest_sha256=division)
    return Chosen(number, start, found, held_out, calibrated, selection, set_id, before)


def _as_teacher(loop: Loop, champion: Model) -> Teacher:
    return teacher_of(
        load_predictor(champion.weights_uri).weights,
        loop.data,
        round_number=champion.round,
        tta_spec=loop.methods.tta_spec,
        train_set_id=train_set_of(loop.store, champion.model_id),
    )


def _judged(running: Running, chosen: Chosen, pseudo: str) -> RoundOutcome:
    """The student of what was accepted against champion and baseline: promoted, waiting, or refused."""
    loop, step, number, champion = running.loop, running.step, chosen.number, chosen.start.teacher
    job, uri, record = _teach(running, chosen, pseudo)
    # With cross-fitting the teacher is the supervised model of all labels already.
    crossfit = running.parameters.crossfit
    baseline = champion.weights_uri if crossfit else step(f"round {number}: train baseline", train_baseline, running)
    measured = step(f"round {number}: judge", measure, loop, number, champion.weights_uri, uri, baseline)
    audited = step(f"round {number}: audit", audit, running, chosen.selection, chosen.thresholds, chosen.train_set_id)
    heartbeats, entropy = heartbeats_of(
        chosen.selection, chosen.found, chosen.held_out, chosen.thresholds, record, chosen.before
    )
    verdict = ask_the_gate(
        loop, number, chosen.start, record.reference, measured, audited, chosen.selection, heartbeats
    )
    outcome = chosen.outcome(
        candidate_id=record.reference,
        verdict=verdict,
        gate_metric=measured.candidate.judged.main_figure,
        champion_metric=measured.champion.judged.main_figure,
        baseline_metric=measured.baseline.judged.main_figure,
        waits=promote_or_wait(loop, verdict, _model(loop, uri, record, number)),
        entropy=entropy,
    )
    remember_round(loop, outcome, chosen.thresholds, chosen.start, job, measured)
    step(f"round {number}: compare models", compare_models, loop, number, chosen.selection, uri)
    return outcome


def _teach(running: Running, chosen: Chosen, pseudo: str) -> tuple[TrainingJob, str, Weights]:
    """The student: from a fresh start, on human labels and the training set ``pseudo`` of those that were accepted; the
    teacher's weights would keep its mistakes."""
    loop, number = running.loop, chosen.number
    job = job_for(loop, loop.data.split(TRAIN), role="student", pseudo=pseudo)
    uri, record = running.step(f"round {number}: train student", carry_out, job, running.parameters.ray, running.logs)
    remember_model(
        loop.store, job, uri, record, loop.data, role="student", run_id=loop.run_id, round_number=number,
        parent=chosen.start.teacher.model_id, train_set_id=chosen.train_set_id,
    )  # fmt: skip
    return job, uri, record


def _model(loop: Loop, uri: str, record: Weights, number: int) -> Model:
    return Model(record.reference, uri, record.digest, loop.run_id, number)
