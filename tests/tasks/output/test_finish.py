from __future__ import annotations

import datetime as dt
from typing import Any

from tasks.output.finish import PlanTotals, RunFacts, finish_run, plan_totals
from tasks.output.layout import part_key
from tasks.output.runs import RunRecord, read_run
from tests.tasks.output.fake_output import FakeOutput, Item


def close(output: FakeOutput, *, outcome: str = "done", planned: int = 3, plan: int = 1) -> RunRecord:
    facts: dict[str, Any] = {"inventory": {}, "weights": {}, "execution": {}, "environment": {}}
    run = RunFacts(
        run_id="run-1",
        source="s3://pictures",
        output=output.store.uri,
        version=output.version,
        started_at=dt.datetime.now(dt.UTC),
        plan=plan,
        plan_joined=False,
        **facts,
    )
    return finish_run(
        output.store,
        run,
        outcome=outcome,
        message="",
        shards={"planned": planned},
        errors={},
        error_sample=(),
        stage_seconds={},
        pool={},
        items_per_s=1.0,
    )


def test_totals_are_those_of_the_plans_own_parts(filled: FakeOutput) -> None:
    filled.commit([Item("new.jpg", num_instances=2)])
    first, second = (plan_totals(filled.store, filled.version, number) for number in (1, 2))
    assert first == PlanTotals(3, {"rows": 17, "ok": 16, "failed": 1, "quarantined": 0, "instances": 48})
    assert second == PlanTotals(1, {"rows": 1, "ok": 1, "failed": 0, "quarantined": 0, "instances": 2})


def test_a_plan_that_is_committed_whole_is_done_also_with_failed_items(filled: FakeOutput) -> None:
    record = close(filled)
    assert (record.outcome, record.exit_code) == ("done", 0)
    assert record.items["failed"] == 1
    assert read_run(filled.store, "run-1") == record


def test_a_plan_with_open_shards_is_not_done_whatever_the_pool_says(output: FakeOutput) -> None:
    output.commit([Item(f"{n}.jpg") for n in range(3)], num_shards=3, leave_open=1)
    record = close(output)
    assert (record.outcome, record.exit_code, record.shards["committed"]) == ("failed", 1, 2)


def test_a_run_that_was_stopped_says_so(output: FakeOutput) -> None:
    output.commit([Item(f"{n}.jpg") for n in range(3)], num_shards=3, leave_open=2)
    record = close(output, outcome="stopped")
    assert (record.outcome, record.exit_code, record.items["ok"]) == ("stopped", 1, 1)


def test_a_part_that_cannot_be_read_is_named(filled: FakeOutput) -> None:
    key = next(info.key for info in filled.store.list(part_key(filled.version, "x").rpartition("/")[0]))
    filled.store.put(key, b"PAR1 torn PAR1")
    totals = plan_totals(filled.store, filled.version, 1)
    assert totals.shards == 3
    assert len(totals.unreadable) == 1
    assert key in totals.unreadable[0]
