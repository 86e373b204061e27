"""A loop is begun once; what a round begins with is written down once; looks at the gate set add up over loops."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from infra.store import Store, open_store
from tasks.loop.champion import Model
from tasks.loop.journal import end_loop, open_loop, start_round
from tasks.loop.schemas import ROUNDS
from tasks.output import tables

FIRST, SECOND = (Model(f"student@{k}", f"s3://w/{k}", k * 64, "r", 1) for k in "ab")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def judged(store: Store, run_id: str, number: int, manifest: str) -> None:
    """What a round leaves at its end."""
    row = {
        "run_id": run_id, "round": number, "kind": "instance", "splits_manifest_sha256": manifest,
        "train_set_id": "t", "promoted": False,
        "candidate_id": "c", "leakage_report": "{}", "threshold_set_id": "s", "n_human": 1, "n_pseudo": 1,
        "accept_rate": 0.5, "training": "{}", "augmentation": "{}", "seeds": [0], "environment": "{}",
        "code_commit": "1", "metrics_gate": "{}", "metrics_baseline": "{}", "verdict_id": "v", "looks_used": number,
        "alpha_spent": 0.0, "finished_at": dt.datetime(2026, 11, 26, tzinfo=dt.UTC),
    }  # fmt: skip
    tables.append(store, ROUNDS, tables.table_of(ROUNDS, [row]))


def test_a_loop_that_has_not_ended_goes_on_and_one_that_has_is_followed_by_another(store: Store) -> None:
    run_id = open_loop(store, "retrain-1")
    assert open_loop(store, "retrain-1") == run_id
    assert open_loop(store, "retrain-2") != run_id
    end_loop(store, run_id)
    following = open_loop(store, "retrain-1")
    assert following != run_id and open_loop(store, "retrain-1") == following


def test_a_round_keeps_its_teacher_when_the_champion_has_moved(store: Store) -> None:
    start = start_round(store, "loop-1", 1, FIRST, {"m"})
    assert start == start_round(store, "loop-1", 1, SECOND, {"m"}) and start.teacher == FIRST
    assert start_round(store, "loop-1", 2, SECOND, {"m"}).teacher == SECOND


def test_looks_at_one_gate_set_add_up_over_loops_and_a_resumed_round_looks_once(store: Store) -> None:
    assert start_round(store, "loop-1", 1, FIRST, {"m"}).looks_used == 1
    judged(store, "loop-1", 1, "m")
    assert start_round(store, "loop-1", 1, FIRST, {"m"}).looks_used == 1
    assert start_round(store, "loop-1", 2, FIRST, {"m"}).looks_used == 2
    judged(store, "loop-1", 2, "m")
    assert start_round(store, "loop-2", 1, FIRST, {"m"}).looks_used == 3
    assert start_round(store, "loop-3", 1, FIRST, "another division").looks_used == 1
