"""How rows are computed is decided once for a plan, and whoever comes later follows or says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StoreError
from infra.store import Store, open_store
from tasks.engine import plan_execution
from tasks.engine.job import JobSpec
from tasks.engine.plan_execution import Followed, follow_plan
from tasks.ingest.plan import Plan, load_plan
from tasks.output.layout import execution_key
from tasks.report.verify import verify
from tests.tasks.engine.fakes import job_for
from tests.tasks.output.fake_output import FakeOutput, Item

EAGER, COMPILED = {"mode": "eager"}, {"mode": "compiled"}


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri)


@pytest.fixture
def output(store: Store) -> FakeOutput:
    """One plan of one item."""
    made = FakeOutput(store)
    made.commit([Item("s3://pictures/0.jpg")])
    return made


def plan_of(output: FakeOutput) -> Plan:
    return load_plan(output.store, output.version, output.num_plans)


def job_of(output: FakeOutput, **options: Any) -> JobSpec:
    return job_for(output.store.uri, version=output.version, **options)


def follow(
    output: FakeOutput, decision: dict[str, Any] | None, policy: Any = "auto", batch_size: int | None = None, **job: Any
) -> Followed:
    """Follow the newest plan; ``decision`` is what measuring would say now, None: it must not be asked."""

    def choose() -> dict[str, Any]:
        assert decision is not None, "measured anew"
        return decision

    return follow_plan(
        plan_of(output),
        job_of(output, batch_size=batch_size or 1, **job),
        policy=policy,
        batch_size=batch_size,
        choose=choose,
    )


def test_the_first_run_decides_and_every_later_one_follows(output: FakeOutput) -> None:
    first = follow(output, COMPILED, batch_size=8, device="cuda")
    assert (first.job.execution, first.notes) == (COMPILED, ())
    joined = follow(output, None)
    assert (joined.job.execution, joined.job.batch_size) == (COMPILED, 8)
    assert joined.job.batch_item_bytes == first.job.batch_item_bytes
    output.commit([Item("s3://pictures/1.jpg")])
    later = follow(output, None, device="cuda")
    assert (later.job.execution, later.notes) == (COMPILED, ())
    assert verify(output.store.uri).problems == ()


def test_another_wish_counts_from_the_next_plan_on_and_an_open_one_says_so(output: FakeOutput) -> None:
    follow(output, EAGER)
    (note,) = follow(output, None, "on").notes
    assert "--compile auto and --batch-size 1" in note and "next plan" in note
    output.commit([Item("s3://pictures/1.jpg")])
    assert follow(output, COMPILED, "on").job.execution == COMPILED
    output.commit([Item("s3://pictures/2.jpg")])
    assert follow(output, None, "on").job.execution == COMPILED
    assert follow(output, None).job.execution == COMPILED
    output.commit([Item("s3://pictures/3.jpg")])
    assert follow(output, EAGER, batch_size=4).job.execution == EAGER


def test_of_two_drivers_at_once_one_decides_for_both(output: FakeOutput) -> None:
    def choose() -> dict[str, Any]:
        follow(output, COMPILED)  # the other one is a moment earlier
        return EAGER

    late = follow_plan(plan_of(output), job_of(output), policy="auto", batch_size=None, choose=choose)
    assert late.job.execution == COMPILED


def test_another_device_or_machine_is_said(output: FakeOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(output, EAGER)
    assert "computed on cpu, these are on cuda" in follow(output, None, device="cuda").notes[0]
    monkeypatch.setattr(plan_execution, "this_machine", lambda device: {"torch": "9.9", "processor": "DEFAULT"})
    (note,) = follow(output, None).notes
    assert "here DEFAULT" in note and "here 9.9" in note


def test_an_output_of_before_decides_once_and_a_damaged_record_is_refused(output: FakeOutput) -> None:
    follow(output, EAGER)
    key = execution_key(output.version, 1)
    content = json.loads(output.store.get(key))
    assert (content["decision"], content["plan"]) == (EAGER, 1)
    output.store.put(key, b"{")
    with pytest.raises(StoreError, match="damaged"):
        follow(output, EAGER)


def test_a_record_states_no_more_than_digits_depend_on(output: FakeOutput, tmp_path: Path) -> None:
    follow(output, EAGER)
    content = json.loads(output.store.get(execution_key(output.version, 1)))
    assert set(content) == {
        "decision", "policy", "device", "batch_size", "batch_item_bytes", "machine", "plan", "token"
    }  # fmt: skip
