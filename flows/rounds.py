"""The models before the first round, and one round: teach, select, train, judge, decide; here is the order alone."""

from __future__ import annotations

from flows.held_out import held_out_candidates
from flows.round_steps import Running, audit, infer, report_round, train_baseline, train_supervised
from flows.train import carry_out
from infra.store import open_store
from modelkit import Weights
from tasks.loop.candidates import read_candidates
from tasks.loop.champion import Model, read_pointer
from tasks.loop.journal import start_round
from tasks.loop.judging import load_predictor
from tasks.loop.loops import Loop, check_can_be_calibrated, job_for
from tasks.loop.records import remember_model, teacher_of, train_set_of
from tasks.loop.rounds import (
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
from tasks.training.job import TrainingJob


def begin(running: Running) -> None:
    """The supervised model becomes the first champion, unless the output has one; it is nobody's student."""
    loop = running.loop
    if read_pointer(loop.store)[0].champion is not None:
        return
    uri, record = train_supervised(running, loop.data.split(TRAIN), role="teacher")
    promote_first(loop, _model(loop, uri, record, 0))


def turn(running: Running, number: int, before: RoundOutcome | None) -> RoundOutcome:
    """One round, from the champion's labels to the gate's decision."""
    loop, step = running.loop, running.step
    now = read_pointer(loop.store)[0].champion
    assert now is not None  # begin() saw to it
    gates = same_gate(loop.store, loop.data.items, loop.data.manifest)
    start = start_round(loop.store, loop.run_id, number, now, gates)
    champion = start.teacher
    check_can_be_calibrated(loop, champion)
    teacher = teacher_of(
        load_predictor(champion.weights_uri).weights,
        loop.data,
        round_number=champion.round,
        tta_spec=loop.methods.tta_spec,
        train_set_id=train_set_of(loop.store, champion.model_id),
    )
    previous = None if before is None else before.selection.labels
    step(f"round {number}: infer", infer, running, champion)
    inferred, asked = open_store(loop.inference_uri(champion)), loop.asked(teacher, number)
    found, images = step(f"round {number}: read candidates", read_candidates, inferred, loop.data.items, asked)
    held_out = held_out_candidates(running, champion, teacher, number)
    calibrated = step(f"round {number}: calibrate", calibrate, loop, teacher, held_out, found, images, number)
    selection = step(
        f"round {number}: select", select, found, images, thresholds=calibrated.thresholds,
        scores=calibrated.scores, quality=calibrated.quality, previous=previous,
    )  # fmt: skip
    set_id, job, uri, record = _teach(running, number, champion, selection)
    # With cross-fitting the teacher is the supervised model of all labels already.
    crossfit = running.parameters.crossfit
    baseline = champion.weights_uri if crossfit else step(f"round {number}: train baseline", train_baseline, running)
    measured = step(f"round {number}: judge", measure, loop, number, champion.weights_uri, uri, baseline)
    audited = step(f"round {number}: audit", audit, running, selection, calibrated.thresholds, set_id)
    heartbeats, entropy = heartbeats_of(selection, found, held_out, calibrated.thresholds, record, before)
    verdict = ask_the_gate(loop, number, start, record.reference, measured, audited, selection, heartbeats)
    outcome = RoundOutcome(
        number=number,
        teacher_id=champion.model_id,
        candidate_id=record.reference,
        train_set_id=set_id,
        accepted=selection.accepted_by_name(),
        selection=selection,
        verdict=verdict,
        gate_metric=measured.candidate.judged.main_figure,
        champion_metric=measured.champion.judged.main_figure,
        baseline_metric=measured.baseline.judged.main_figure,
        waits=promote_or_wait(loop, verdict, _model(loop, uri, record, number)),
        changed_share=changed_share(before.selection if before else None, selection),
        entropy=entropy,
    )
    remember_round(loop, outcome, job, calibrated.thresholds, measured, start)
    step(f"round {number}: compare models", compare_models, loop, number, selection, uri)
    step(f"round {number}: write report", report_round, loop)
    return outcome


def _teach(
    running: Running, number: int, champion: Model, selection: Selection
) -> tuple[str, TrainingJob, str, Weights]:
    """The name of what the student learns from, and the student: from a fresh start, on human labels and those that
    were accepted; the teacher's weights would keep its mistakes."""
    loop, step = running.loop, running.step
    pseudo = step(f"round {number}: remember selection", remember_selection, loop.store, selection, loop.methods)
    set_id = train_set_id(
        selection,
        label_set_id=loop.data.labels.label_set_id,
        splits_manifest_sha256=loop.data.manifest.manifest_sha256,
    )
    job = job_for(loop, loop.data.split(TRAIN), role="student", pseudo=pseudo)
    uri, record = step(f"round {number}: train student", carry_out, job, running.parameters.ray)
    remember_model(
        loop.store, job, uri, record, loop.data, role="student", run_id=loop.run_id, round_number=number,
        parent=champion.model_id, train_set_id=set_id,
    )  # fmt: skip
    return set_id, job, uri, record


def _model(loop: Loop, uri: str, record: Weights, number: int) -> Model:
    return Model(record.reference, uri, record.digest, loop.run_id, number)
