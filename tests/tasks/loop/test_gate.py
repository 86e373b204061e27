"""The gate opens only if every criterion holds, and says which does not."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest

from infra.store import open_store
from tasks.evaluation.bootstrap import PairedDifference
from tasks.loop.gate import Audit, Criterion, GateInputs, GateLimits, Verdict, judge, significant_falls
from tasks.loop.schemas import VERDICTS
from tasks.output.tables import append, read

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
FACTS = {"run_id": "r", "round_number": 1, "champion_id": "a@1", "candidate_id": "b@2", "decided_at": NOW}


def difference(**changes: object) -> PairedDifference:
    found = PairedDifference(
        value=0.5, reference=0.48, difference=0.02, probability=0.995, low=0.005, high=0.035,
        class_names=("disc", "box"), class_difference=np.array([0.03, 0.01]), class_error=np.array([0.01, 0.01]),
        size_names=("small", "medium", "large"), size_difference=np.array([0.0, 0.02, np.nan]),
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


GOOD = GateInputs(
    against_champion=difference(),
    against_baseline=difference(),
    groups=40,
    watched=("disc", "box"),
    least_truth="30 true objects",
    d_ece=0.05,
    champion_d_ece=0.05,
    audit=Audit(n=120, errors=3, promised=0.9),
    leaks=0,
    labels_without_lineage=0,
    heartbeats=(Criterion("heartbeat: accepted rate of disc", 0.9, "<=", 2.0),),
    looks_used=1,
)


def verdict(inputs: GateInputs, limits: GateLimits | None = None) -> Verdict:
    return judge(inputs, limits or GateLimits(), **FACTS)  # type: ignore[arg-type]


def test_a_good_candidate_passes_every_criterion() -> None:
    found = verdict(GOOD)
    assert found.promoted and found.reasons == () and len(found.criteria) == 14


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"against_champion": difference(probability=0.98)}, "better: probability"),
        ({"against_champion": difference(difference=0.002)}, "better: gain"),
        ({"against_champion": difference(probability=float("nan"))}, "better: probability"),
        ({"against_champion": difference(class_difference=np.array([0.05, -0.09]))}, "classes"),
        ({"against_champion": difference(size_difference=np.array([-0.02, 0.02, 0.0]))}, "sizes: change of AP small"),
        ({"against_champion": None}, "better"),
        ({"d_ece": 0.11, "champion_d_ece": 0.11}, "calibration: D-ECE"),
        ({"d_ece": 0.08}, "calibration: D-ECE worse"),
        ({"d_ece": float("nan"), "champion_d_ece": None}, "calibration: D-ECE: not measured"),
        ({"audit": None}, "audit"),
        ({"audit": Audit(n=102, errors=0, promised=0.9)}, "audit: labels"),
        ({"audit": Audit(n=120, errors=14, promised=0.9)}, "audit: lower bound"),
        ({"leaks": 1}, "leakage"),
        ({"labels_without_lineage": 1}, "lineage"),
        ({"heartbeats": (Criterion("heartbeat: rate", 2.1, "<=", 2.0),)}, "heartbeat"),
        ({"against_baseline": difference(difference=0.0)}, "baseline"),
        ({"against_baseline": None}, "baseline"),
        ({"looks_used": 4}, "looks"),
        ({"watched": ()}, "classes: fall beyond what is allowed: not measured"),
        ({"groups": 5}, "better: probability of a gain: not measured"),
    ],
    ids=[
        "luck", "small", "nan", "class", "size", "unmeasured", "d-ece", "d-ece worse", "d-ece unmeasured",
        "no audit", "short audit", "bad audit", "leak", "lineage", "heartbeat", "as the baseline", "no baseline",
        "looks",
        "no class is watched", "too few groups",
    ],
)  # fmt: skip
def test_one_broken_criterion_is_enough_and_is_named(change: dict[str, object], failing: str) -> None:
    found = verdict(replace(GOOD, **change))  # type: ignore[arg-type]
    assert not found.promoted
    assert any(reason.startswith(failing) for reason in found.reasons)
    expected = 2 if change.get("against_champion", 1) is None else 1
    assert len(found.reasons) == expected


def test_a_small_or_uncertain_fall_of_a_class_is_no_fall() -> None:
    for change, error, watched in ((-0.015, 0.002, True), (-0.09, 0.08, True), (-0.5, 0.01, False)):
        inputs = replace(
            GOOD,
            against_champion=difference(class_difference=np.array([0.05, change]), class_error=np.array([0.01, error])),
            watched=("disc", "box") if watched else ("disc",),
        )
        assert verdict(inputs).promoted


def test_holm_steps_down_and_stops() -> None:
    difference = np.array([-2.6, -2.2, -1.5, 0.5])  # p .0047, .0139, .0668, .69 at an error of 1
    assert significant_falls(difference, np.ones(4), 0.05).tolist() == [True, True, False, False]
    assert significant_falls(np.array([-2.1, -2.1, -2.1, -2.1]), np.ones(4), 0.05).tolist() == [False] * 4
    assert significant_falls(np.array([-0.1, 0.0]), np.zeros(2), 0.05).tolist() == [True, False]


def test_each_look_spends_its_part_of_the_level() -> None:
    limits = GateLimits(max_rounds=5)
    assert limits.level_per_look == pytest.approx(0.01)
    assert verdict(replace(GOOD, looks_used=2), limits).level_spent == pytest.approx(0.02)
    assert not verdict(replace(GOOD, against_champion=difference(probability=0.985)), limits).promoted


def test_the_first_model_needs_no_champion_but_everything_else() -> None:
    inputs = replace(GOOD, against_champion=None, champion_d_ece=None)
    first = judge(inputs, GateLimits(), **{**FACTS, "champion_id": None})  # type: ignore[arg-type]
    assert first.promoted
    assert not judge(replace(inputs, audit=None), GateLimits(), **{**FACTS, "champion_id": None}).promoted  # type: ignore[arg-type]


def test_every_value_and_limit_is_stored(store_uri: str) -> None:
    store = open_store(store_uri)
    found = verdict(replace(GOOD, leaks=2, audit=None))
    append(store, VERDICTS, found.to_table())
    rows = read(store, VERDICTS).to_pylist()
    assert len(rows) == len(found.criteria) and {row["promoted"] for row in rows} == {False}
    leak = next(row for row in rows if row["criterion"].startswith("leakage"))
    assert (leak["value"], leak["relation"], leak["demanded"], leak["passed"]) == (2.0, "==", 0.0, False)
    unmeasured = next(row for row in rows if row["criterion"].startswith("audit"))
    assert unmeasured["value"] is None and not unmeasured["passed"] and "nobody looked" in unmeasured["reason"]
    later = judge(replace(GOOD, leaks=2, audit=None), GateLimits(), **{**FACTS, "decided_at": NOW.replace(year=2027)})  # type: ignore[arg-type]
    assert later.verdict_id == found.verdict_id != verdict(GOOD).verdict_id
