"""The models before the first round, and one round: teach, select, train, judge, decide."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from flows.held_out import check_can_be_calibrated, held_out_candidates
from flows.round_report import compare_models, report_round
from flows.round_steps import (
    Loop,
    Measured,
    audit_accepted,
    calibrate,
    decide_candidates,
    infer,
    measure,
    read_round_candidates,
    train_baseline,
    train_student,
    train_supervised,
)
from modelkit import Weights
from tasks.evaluation.figures import to_json
from tasks.loop import champion as champions
from tasks.loop.firewall import count_leaks
from tasks.loop.gate import Audit, Criterion, GateInputs, Verdict, judge
from tasks.loop.heartbeats import (
    class_mix_heartbeat,
    entropy_heartbeat,
    labels_without_lineage,
    loss_heartbeat,
    prediction_entropy,
    rate_heartbeats,
)
from tasks.loop.journal import RoundStart, start_round
from tasks.loop.judging import difference, objects_by_class
from tasks.loop.records import remember_model, teacher_of, train_set_of, training_columns
from tasks.loop.schemas import MODELS, ROUNDS, THRESHOLD_SETS, VERDICTS
from tasks.loop.selection import Selection, changed_share, train_set_id
from tasks.loop.thresholds import ThresholdSet, accepted_rates
from tasks.output import tables
from tasks.training.job import TrainingJob


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What came of a round.

    Args:
        number: from 1.
        teacher_id, candidate_id: the models.
        train_set_id: of the human labels and accepted pseudo-labels.
        accepted: objects by class name; of semantic segmentation, pixels.
        selection: all candidates, decided.
        verdict: of the gate.
        gate_metric, champion_metric, baseline_metric: main metric on G.
        waits: a person has to approve.
        changed_share: of the accepted set against the round before.
        entropy: of the teacher's predictions on U, bits; None without any.
    """

    number: int
    teacher_id: str
    candidate_id: str
    train_set_id: str
    accepted: dict[str, int]
    selection: Selection
    verdict: Verdict
    gate_metric: float
    champion_metric: float
    baseline_metric: float
    waits: bool
    changed_share: float
    entropy: float | None

    @property
    def passed(self) -> bool:
        """Whether the gate let the candidate through."""
        return self.verdict.promoted

    def to_json(self) -> dict[str, Any]:
        """What is told about it."""
        return {
            "round": self.number,
            "teacher": self.teacher_id,
            "candidate": self.candidate_id,
            "train_set_id": self.train_set_id,
            "accepted": self.accepted,
            "gate": {
                "verdict_id": self.verdict.verdict_id,
                "passed": self.passed,
                "reasons": list(self.verdict.reasons),
                "candidate": self.gate_metric,
                "champion": self.champion_metric,
                "baseline": self.baseline_metric,
            },
            "waits_for_approval": self.waits,
            "changed_share": self.changed_share,
        }


def begin(loop: Loop) -> None:
    """The supervised model on L becomes the first champion, unless the output has one; it is nobody's student."""
    if champions.read_pointer(loop.store)[0].champion is not None:
        return
    uri, record = train_supervised(loop, loop.data.split("L"), role="teacher")
    now = dt.datetime.now(dt.UTC)
    first = Criterion("first: champions before it", 0.0, "==", 0.0, "the output had no model")
    verdict = Verdict(loop.run_id, 0, None, record.reference, (first,), now)
    tables.append(loop.store, VERDICTS, verdict.to_table())
    model = _model(loop, uri, record, 0)
    kept = champions.record_candidate(loop.store, verdict, model, needs_approval=False, at=now)
    champions.promote(
        loop.store, kept.verdict_id, approver=champions.GATE, reason="the first model of this output", at=now
    )


def turn(loop: Loop, number: int, before: RoundOutcome | None) -> RoundOutcome:
    """One round, from the champion's labels to the gate's decision."""
    now = champions.read_pointer(loop.store)[0].champion
    assert now is not None  # begin() saw to it
    start = start_round(loop.store, loop.run_id, number, now, loop.data.manifest.manifest_sha256)
    champion = start.teacher
    check_can_be_calibrated(loop, champion)
    predictor = loop.predictor(champion.weights_uri)
    teacher = teacher_of(
        predictor.weights, loop.data, round_number=champion.round, tta_spec=loop.task.tta_spec,
        train_set_id=train_set_of(loop.store, champion.model_id),
    )  # fmt: skip
    step, previous = loop.step, None if before is None else before.selection.labels
    step(f"round {number}: infer", infer, loop, champion)
    found = step(f"round {number}: read candidates", read_round_candidates, loop, champion, teacher, number)
    mine = held_out_candidates(loop, champion, teacher, number)
    calibrated = step(f"round {number}: calibrate", calibrate, loop, teacher, mine, found, number)
    thresholds = calibrated.thresholds
    selection = step(f"round {number}: select", decide_candidates, loop, found, calibrated.by, thresholds, previous)
    set_id = train_set_id(
        selection,
        label_set_id=loop.data.labels.label_set_id,
        splits_manifest_sha256=loop.data.manifest.manifest_sha256,
    )
    job, uri, record = step(f"round {number}: train student", train_student, loop, selection)
    remember_model(
        loop.store, job, uri, record, loop.data, role="student", run_id=loop.run_id, round_number=number,
        parent=champion.model_id, train_set_id=set_id,
    )  # fmt: skip
    # With cross-fitting the teacher is the supervised model of all labels already.
    crossfit = loop.parameters.crossfit
    baseline_uri = champion.weights_uri if crossfit else step(f"round {number}: train baseline", train_baseline, loop)
    measured = step(f"round {number}: judge", measure, loop, number, champion.weights_uri, uri, baseline_uri)
    audit = step(f"round {number}: audit", audit_accepted, loop, selection, thresholds, set_id)
    entropy = prediction_entropy(found.candidates)
    heartbeats = [
        *rate_heartbeats(accepted_rates(thresholds, selection.accepted_by_class(), selection.images.num_rows)),
        loss_heartbeat(record.lineage.get("history", [])),
        entropy_heartbeat("C", entropy, calibrated.entropy),
    ]
    if before is not None:
        heartbeats.append(class_mix_heartbeat(before.accepted, selection.accepted_by_name()))
        heartbeats.append(entropy_heartbeat("the round before", entropy, before.entropy))
    verdict = _decide(loop, number, start, record, measured, audit, selection, heartbeats)
    waits = _promote(loop, number, verdict, _model(loop, uri, record, number))
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
        waits=waits,
        changed_share=changed_share(before.selection if before else None, selection),
        entropy=entropy,
    )
    _remember(loop, outcome, job, thresholds, measured, start)
    step(f"round {number}: compare models", compare_models, loop, number, selection, uri)
    step(f"round {number}: write report", report_round, loop)
    return outcome


def _decide(
    loop: Loop,
    number: int,
    start: RoundStart,
    record: Weights,
    measured: Measured,
    audit: Audit | None,
    selection: Selection,
    heartbeats: list[Criterion],
) -> Verdict:
    gate, seed = loop.data.split("G"), loop.parameters.seed
    candidate = measured.candidate.judged
    accepted = selection.accepted
    inputs = GateInputs(
        against_champion=difference(candidate, measured.champion.judged, gate, seed=seed),
        against_baseline=difference(candidate, measured.baseline.judged, gate, seed=seed),
        objects_by_class=objects_by_class(gate),
        d_ece=measured.candidate.d_ece,
        champion_d_ece=measured.champion.d_ece,
        audit=audit,
        leaks=count_leaks(accepted, loop.data.items),
        labels_without_lineage=labels_without_lineage(
            accepted, tables.read(loop.store, MODELS), tables.read(loop.store, THRESHOLD_SETS)
        ),
        heartbeats=heartbeats,
        looks_used=start.looks_used,
    )
    return judge(
        inputs,
        loop.limits,
        run_id=loop.run_id,
        round_number=number,
        champion_id=start.teacher.model_id,
        candidate_id=record.reference,
        decided_at=dt.datetime.now(dt.UTC),
    )


def _promote(loop: Loop, number: int, verdict: Verdict, model: champions.Model) -> bool:
    """Keep the verdict, and promote where nobody has to be asked; whether the candidate waits for a person."""
    tables.append(loop.store, VERDICTS, verdict.to_table())
    asks = loop.parameters.require_approval
    kept = champions.record_candidate(loop.store, verdict, model, needs_approval=asks, at=verdict.decided_at)
    state = champions.state_of(kept, champions.read_pointer(loop.store)[0])
    if state != "waiting" or asks:  # refused, or decided when this round was carried out before
        return state == "waiting"
    champions.promote(
        loop.store, kept.verdict_id, approver=champions.GATE, reason=f"round {number}: all criteria hold",
        at=verdict.decided_at,
    )  # fmt: skip
    return False


def _model(loop: Loop, uri: str, record: Weights, number: int) -> champions.Model:
    return champions.Model(record.reference, uri, record.digest, loop.run_id, number)


def _remember(
    loop: Loop,
    outcome: RoundOutcome,
    job: TrainingJob,
    thresholds: ThresholdSet,
    measured: Measured,
    start: RoundStart,
) -> None:
    """One row of ``rounds.v1``."""
    after = champions.read_pointer(loop.store)[0].champion
    total = outcome.selection.labels.num_rows
    accepted = outcome.selection.accepted.num_rows
    labelled = loop.data.split("L").table
    row = {
        "run_id": loop.run_id,
        "round": outcome.number,
        "parent_round": start.teacher.round,
        "champion_in": start.teacher.model_id,
        "champion_out": None if after is None else after.model_id,
        "candidate_id": outcome.candidate_id,
        "splits_manifest_sha256": loop.data.manifest.manifest_sha256,
        "leakage_report": json.dumps(loop.data.manifest.leakage),
        "train_set_id": outcome.train_set_id,
        "threshold_set_id": thresholds.threshold_set_id,
        "n_human": sum(map(len, labelled["labels"].to_pylist())),
        "n_pseudo": accepted,
        "accept_rate": accepted / total if total else 0.0,
        "metrics_gate": json.dumps(to_json(measured.candidate.judged)),
        "metrics_baseline": json.dumps(to_json(measured.baseline.judged)),
        "verdict_id": outcome.verdict.verdict_id,
        "promoted": outcome.passed and not outcome.waits,
        "looks_used": start.looks_used,
        "alpha_spent": outcome.verdict.level_spent,
        "test_opened": False,
        "finished_at": dt.datetime.now(dt.UTC),
        **training_columns(job),
    }
    tables.append(loop.store, ROUNDS, tables.table_of(ROUNDS, [row]))
