"""The work of a round, one function for each of its steps; each leaves objects that are named by their content."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from modelkit import Weights
from tasks.labels.label_sets import LabelSet
from tasks.loop import champion as champions
from tasks.loop.audits import audit_of, audit_table
from tasks.loop.candidates import Row, Teacher, candidates_on
from tasks.loop.differences import items_to_compare, sure_of_candidate, sure_of_champion
from tasks.loop.disagreements import find_disagreements, write_disagreements
from tasks.loop.firewall import count_leaks
from tasks.loop.gate import Audit, Criterion, GateInputs, GateLimits, Verdict, judge
from tasks.loop.heartbeats import (
    class_mix_heartbeat,
    entropy_heartbeat,
    labels_without_lineage,
    loss_heartbeat,
    prediction_entropy,
    rate_heartbeats,
)
from tasks.loop.journal import RoundStart
from tasks.loop.judging import OnGate, difference, judge_on_gate, load_predictor
from tasks.loop.kinds import loop_kind
from tasks.loop.loops import Loop
from tasks.loop.methods import Calibrated, CalibratedFor, LabelledPredictions
from tasks.loop.records import teacher_of, training_columns
from tasks.loop.schemas import (
    AUDITS,
    CALIBRATORS,
    MODELS,
    ROUNDS,
    THRESHOLD_SETS,
    VERDICTS,
)
from tasks.loop.selection import Selection
from tasks.loop.split_names import CALIBRATION, GATE, TRAIN
from tasks.loop.thresholds import ThresholdSet, accepted_rates
from tasks.output import tables
from tasks.training.job import TrainingJob

NOTHING_ACCEPTED = "nothing was accepted, so no student was trained and the gate set was not looked at"
COMPARED_ITEMS = 200
EXPORTED_ITEMS = 50


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What came of a round.

    Args:
        number: from 1.
        teacher_id, candidate_id: the models; no candidate where the round ended before a student was trained.
        train_set_id: of the human labels and accepted pseudo-labels.
        accepted: how much by class name, in the unit of the kind.
        selection: all candidates, decided.
        verdict: of the gate; None without a candidate.
        gate_metric, champion_metric, baseline_metric: main figure on the gate set; None without a candidate.
        waits: a person has to approve.
        changed_share: of the accepted set against the round before.
        entropy: of the teacher's predictions on unlabelled items, bits; None without any.
        abstaining: class name -> what it reached, what it needs, and about how many labels are missing.
    """

    number: int
    teacher_id: str
    candidate_id: str | None
    train_set_id: str
    accepted: dict[str, int]
    selection: Selection
    verdict: Verdict | None
    gate_metric: float | None
    champion_metric: float | None
    baseline_metric: float | None
    waits: bool
    changed_share: float
    entropy: float | None
    abstaining: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the gate let the candidate through."""
        return self.verdict is not None and self.verdict.promoted

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why there is no new champion, in words."""
        return (NOTHING_ACCEPTED,) if self.verdict is None else self.verdict.reasons

    def to_json(self) -> dict[str, Any]:
        """What is told about it."""
        return {
            "round": self.number,
            "teacher": self.teacher_id,
            "candidate": self.candidate_id,
            "train_set_id": self.train_set_id,
            "accepted": self.accepted,
            "unit": self.selection.kind.unit,
            "abstaining": self.abstaining,
            "gate": {
                "verdict_id": None if self.verdict is None else self.verdict.verdict_id,
                "passed": self.passed,
                "reasons": list(self.reasons),
                "candidate": self.gate_metric,
                "champion": self.champion_metric,
                "baseline": self.baseline_metric,
            },
            "waits_for_approval": self.waits,
            "changed_share": self.changed_share,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """The three models of a round on the gate set."""

    champion: OnGate
    candidate: OnGate
    baseline: OnGate


def look(loop: Loop, weights_uri: str, labels: LabelSet, teacher: Teacher, number: int) -> pa.Table:
    """``candidates.v2`` of a model on labelled images, looked at as teachers look at unlabelled ones."""
    predictor = loop.methods.as_on_unlabelled(load_predictor(weights_uri, loop.device, loop.looks))
    return candidates_on(predictor, labels, loop.data.items, loop.asked(teacher, number))


def calibrate(
    loop: Loop, teacher: Teacher, held_out: pa.Table, found: pa.Table, images: Sequence[Row], number: int
) -> Calibrated:
    """Thresholds from candidates on labels that their model never saw, banded by those found on the unlabelled."""
    settings = loop.settings
    by = CalibratedFor(
        teacher.teacher_model_id,
        number,
        loop.data.manifest.manifest_sha256,
        seed=settings.seed,
        precision=settings.precision,
        by_name=settings.class_precision,
        geometry=settings.geometry_precision,
    )
    calibrated = loop.methods.calibrate(held_out, loop.calibrating, loop.data.split(TRAIN), by)
    thresholds = loop.methods.banded(calibrated.thresholds, found, len(images))
    calibrated = dataclasses.replace(calibrated, thresholds=thresholds)
    tables.append(loop.store, THRESHOLD_SETS, thresholds.to_table())
    for each in (calibrated.scores, calibrated.quality):
        if each is not None:
            tables.append(loop.store, CALIBRATORS, each.to_table(teacher.teacher_model_id))
    return calibrated


def measure(loop: Loop, number: int, champion: str, candidate: str, baseline: str) -> Measured:
    """Judge the three models of a round; the arguments are URIs of their weights."""
    calibration = None if loop.settings.crossfit else loop.data.split(CALIBRATION)  # else the candidate has learnt them
    found = []
    for uri in (champion, candidate, baseline):
        predictor = load_predictor(uri, loop.device, loop.looks)
        teacher = teacher_of(predictor.weights, loop.data, round_number=number, tta_spec=loop.methods.tta_spec)
        found.append(
            judge_on_gate(
                loop.methods, predictor, calibration, loop.data.split(GATE), loop.data.items,
                loop.asked(teacher, number),
            )
        )  # fmt: skip
    return Measured(*found)


def audit_accepted(loop: Loop, selection: Selection, thresholds: ThresholdSet, set_id: str, truth: LabelSet) -> Audit:
    """What labels of people (or hidden truth) say about a sample of the accepted ones."""
    known = set(truth.table["image_id"].to_pylist())
    accepted = selection.accepted.filter(
        pa.array([image_id in known for image_id in selection.accepted["image_id"].to_pylist()])
    )
    looked = loop.methods.look_at(
        accepted, truth.only(accepted["image_id"].to_pylist()), loop.settings.audit_labels, seed=loop.settings.seed
    )
    if looked:
        rows = audit_table(accepted, looked, train_set_id=set_id, reviewers=[loop.settings.audit or ""])
        tables.append(loop.store, AUDITS, rows)
    return audit_of(accepted, looked, thresholds)


def heartbeats_of(
    selection: Selection,
    found: pa.Table,
    held_out: pa.Table,
    thresholds: ThresholdSet,
    record: Weights,
    before: RoundOutcome | None,
) -> tuple[list[Criterion], float | None]:
    """The signs of a loop that goes wrong, and the entropy of what its teacher predicts on unlabelled items.

    Args:
        found, held_out: ``candidates.v2`` of the teacher on unlabelled items, and on labels that it never saw.
        thresholds: by which it was selected. record: of the student. before: the round before.
    """
    entropy = prediction_entropy(found)
    rates = accepted_rates(thresholds, selection.accepted_by_class(), selection.images.num_rows)
    signs = [
        *rate_heartbeats(rates),
        loss_heartbeat(record.lineage.get("history", [])),
        entropy_heartbeat("calibration", entropy, prediction_entropy(held_out)),
    ]
    if before is not None:
        signs.append(class_mix_heartbeat(before.accepted, selection.accepted_by_name()))
        signs.append(entropy_heartbeat("the round before", entropy, before.entropy))
    return signs, entropy


def ask_the_gate(
    loop: Loop,
    number: int,
    start: RoundStart,
    candidate_id: str,
    measured: Measured,
    audit: Audit | None,
    selection: Selection,
    heartbeats: Sequence[Criterion],
) -> Verdict:
    """Every criterion, asked and remembered."""
    gate, settings, accepted = loop.data.split(GATE), loop.settings, selection.accepted
    candidate = measured.candidate.judged
    inputs = GateInputs(
        against_champion=difference(candidate, measured.champion.judged, gate, seed=settings.seed),
        against_baseline=difference(candidate, measured.baseline.judged, gate, seed=settings.seed),
        groups=len(set(gate.table["group_id"].to_pylist())),
        watched=loop.methods.watched(gate),
        least_truth=loop.methods.least_truth,
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
    verdict = judge(
        inputs,
        GateLimits(max_rounds=settings.max_rounds, min_gain=settings.min_gain),
        run_id=loop.run_id,
        round_number=number,
        champion_id=start.teacher.model_id,
        candidate_id=candidate_id,
        decided_at=dt.datetime.now(dt.UTC),
    )
    tables.append(loop.store, VERDICTS, verdict.to_table())
    return verdict


def promote_or_wait(loop: Loop, verdict: Verdict, model: champions.Model) -> bool:
    """Keep what the gate said, and promote where nobody has to be asked; whether the candidate waits for a person."""
    asks = loop.settings.require_approval
    kept = champions.record_candidate(loop.store, verdict, model, needs_approval=asks, at=verdict.decided_at)
    state = champions.state_of(kept, champions.read_pointer(loop.store)[0])
    if state != "waiting" or asks:  # refused, or decided when this round was carried out before
        return state == "waiting"
    reason = f"round {verdict.round}: all criteria hold"
    champions.promote(loop.store, kept.verdict_id, approver=champions.GATE, reason=reason, at=verdict.decided_at)
    return False


def promote_first(loop: Loop, model: champions.Model) -> None:
    """The first model of an output becomes its champion; there is nothing to compare it with."""
    now = dt.datetime.now(dt.UTC)
    first = Criterion("first: champions before it", 0.0, "==", 0.0, "the output had no model")
    verdict = Verdict(loop.run_id, 0, None, model.model_id, (first,), now)
    tables.append(loop.store, VERDICTS, verdict.to_table())
    kept = champions.record_candidate(loop.store, verdict, model, needs_approval=False, at=now)
    champions.promote(
        loop.store, kept.verdict_id, approver=champions.GATE, reason="the first model of this output", at=now
    )


def remember_round(
    loop: Loop,
    outcome: RoundOutcome,
    thresholds: ThresholdSet,
    start: RoundStart,
    job: TrainingJob | None = None,
    measured: Measured | None = None,
) -> None:
    """One row of ``rounds.v2``; without a student it says how one would have been trained."""
    verdict = outcome.verdict
    after = champions.read_pointer(loop.store)[0].champion
    total, accepted = outcome.selection.labels.num_rows, outcome.selection.accepted.num_rows
    row = {
        "run_id": loop.run_id,
        "round": outcome.number,
        "kind": loop.kind,
        "parent_round": start.teacher.round,
        "champion_in": start.teacher.model_id,
        "champion_out": None if after is None else after.model_id,
        "candidate_id": outcome.candidate_id,
        "splits_manifest_sha256": loop.data.manifest.manifest_sha256,
        "leakage_report": json.dumps(loop.data.manifest.leakage),
        "train_set_id": outcome.train_set_id,
        "threshold_set_id": thresholds.threshold_set_id,
        "n_human": sum(map(len, loop.data.split(TRAIN).table["labels"].to_pylist())),
        "n_pseudo": accepted,
        "accept_rate": accepted / total if total else 0.0,
        "metrics_gate": json.dumps({} if measured is None else measured.candidate.to_json()),
        "metrics_baseline": None if measured is None else json.dumps(measured.baseline.to_json()),
        "verdict_id": None if verdict is None else verdict.verdict_id,
        "promoted": outcome.passed and not outcome.waits,
        "looks_used": start.looks_used - (verdict is None),
        "alpha_spent": 0.0 if verdict is None else verdict.level_spent,
        "finished_at": dt.datetime.now(dt.UTC),
        **training_columns(loop.recipe if job is None else job.recipe, loop.settings.workers),
    }
    tables.append(loop.store, ROUNDS, tables.table_of(ROUNDS, [row]))


def compare_models(loop: Loop, number: int, selection: Selection, candidate_uri: str) -> list[str]:
    """Export the items that champion and candidate see most differently; the keys of the files.

    Raises:
        VisionmillError: an item or the weights cannot be read.
    """
    items = items_to_compare(selection, loop.data.labels.classes, COMPARED_ITEMS)
    predictor = loop.methods.as_compared(load_predictor(candidate_uri, loop.device, loop.looks))
    who = teacher_of(predictor.weights, loop.data, round_number=number, tta_spec="[]")
    on_items, on_unseen = (
        candidates_on(predictor, labels, loop.data.items, loop.asked(who, number)) for labels in (items, loop.unseen)
    )
    sure = sure_of_candidate(on_items, loop.methods.calibrated(LabelledPredictions(on_unseen, loop.unseen)))
    sides = (loop.methods.compared(side) for side in (sure_of_champion(selection, items), sure))
    found = find_disagreements(*sides, at_most=EXPORTED_ITEMS)
    return write_disagreements(loop.store, found, loop_kind(loop.kind), loop.run_id, number)
