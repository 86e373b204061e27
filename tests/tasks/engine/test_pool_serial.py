"""The pool's loop with one worker in this process: resume, failures, drain, deadlines, progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.errors import CircuitOpen, LeaseHeld, ServiceError, UsageError
from infra.retry import RetryPolicy
from infra.store import Store, open_store
from tasks.engine.dispatch import DispatchPolicy
from tasks.engine.hangs import HangLimits
from tasks.engine.pool import PoolSettings, run_serial
from tasks.engine.progress import Progress
from tasks.ingest.plan import committed_shards
from tasks.output.layout import LEASE_KEY
from tasks.output.lease import hold_lease
from tasks.records import Shard
from tests.tasks.engine.fakes import COMPUTING_S, job_for, shards_of, version, write_images
from tests.tasks.engine.test_worker import rows_in


@dataclass
class ListPlan:
    """A plan of given shards over an output folder."""

    output: Path
    all_shards: list[Shard]

    @property
    def num_shards(self) -> int:
        return len(self.all_shards)

    def through(self, store: Store) -> ListPlan:
        return self

    def committed(self) -> set[str]:
        return committed_shards(open_store(str(self.output)), version()) & {s.shard_id for s in self.all_shards}

    def shards(self, skip: set[str]) -> Iterator[Shard]:
        return iter([s for s in self.all_shards if s.shard_id not in skip])


def plan_of(tmp_path: Path, count: int, size: int, acts: dict[int, str] | None = None) -> ListPlan:
    (tmp_path / "out").mkdir()
    return ListPlan(tmp_path / "out", shards_of(write_images(tmp_path / "in", count, acts), size))


def quick(**policy: Any) -> PoolSettings:
    return PoolSettings(
        policy=DispatchPolicy(backoff=RetryPolicy(first_delay_s=0.05, max_delay_s=0.2), **policy), progress_every_s=0.05
    )


def test_a_plan_is_carried_out_and_a_second_run_finds_nothing_to_do(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 30, 7, {4: "raise in infer"})
    seen: list[Progress] = []
    first = run_serial(plan, job_for(plan.output), on_progress=seen.append, settings=quick())
    assert first.finished
    assert first.error is None
    assert (first.rows, first.ok, first.failed, first.shards_committed) == (30, 29, 1, 5)
    assert first.failures == {"ValueError": 1}
    assert first.stage_seconds["infer"] > 0
    assert len(rows_in(plan.output)) == 30
    assert (seen[-1].shards_done, seen[-1].shards_total, seen[-1].eta_s) == (5, 5, 0.0)
    assert seen[-1].items_done == 30
    before = rows_in(plan.output)
    again = run_serial(plan, job_for(plan.output), settings=quick())
    assert again.finished
    assert (again.rows, again.shards_before) == (0, 5)
    assert rows_in(plan.output) == before


def test_a_run_goes_on_where_another_stopped_and_its_progress_is_right_at_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 20, 2)
    half = ListPlan(plan.output, plan.all_shards[:5])
    run_serial(half, job_for(plan.output), settings=quick())
    seen: list[Progress] = []
    outcome = run_serial(plan, job_for(plan.output), on_progress=seen.append, settings=quick())
    assert (outcome.shards_before, outcome.shards_committed, outcome.rows) == (5, 5, 10)
    assert (seen[0].shards_done, seen[0].shards_before, seen[0].shards_total) == (5, 5, 10)
    assert len(rows_in(plan.output)) == 20


def test_the_circuit_opens_with_a_sample_and_the_plan_stays_open(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 40, 10, dict.fromkeys(range(40), "raise in infer"))
    outcome = run_serial(plan, job_for(plan.output, max_consecutive_failures=15), settings=quick())
    assert not outcome.finished
    assert isinstance(outcome.error, CircuitOpen)
    assert "told to raise in infer" in outcome.error.message
    assert len(plan.committed()) < 4


def test_an_item_that_hangs_is_named_with_its_stage_and_the_others_keep_their_rows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 12, 3, {8: "hang in prepare"})
    settings = PoolSettings(
        policy=DispatchPolicy(backoff=RetryPolicy(first_delay_s=0.05)), hangs=HangLimits(quiet_s=1.5)
    )
    outcome = run_serial(plan, job_for(plan.output), settings=settings)
    assert outcome.finished
    rows = rows_in(plan.output)
    assert len(rows) == 12
    (bad,) = [row for row in rows if row["status"] != "ok"]
    assert bad["uri"] == plan.all_shards[2].entries[2].uri
    assert (bad["status"], bad["error_type"], bad["stage"]) == ("quarantined", "WorkerHang", "decode")
    assert "hung in decode" in bad["error"]
    assert all(lost.hung for lost in outcome.lost_workers)


def test_an_item_that_computes_for_longer_than_a_hang_may_sleep_is_an_item_like_any_other(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 12, 3, {0: "compute in infer", 8: "compute in infer"})
    settings = PoolSettings(hangs=HangLimits(quiet_s=COMPUTING_S / 4))
    outcome = run_serial(plan, job_for(plan.output), settings=settings)
    assert (outcome.finished, outcome.ok, outcome.lost_workers) == (True, 12, [])


def test_a_job_whose_model_cannot_be_loaded_says_so_at_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 2, 1)
    outcome = run_serial(plan, job_for(plan.output, model_options={"surprise": 1}), settings=quick())
    assert isinstance(outcome.error, ServiceError)
    assert "surprise" in outcome.error.message
    outcome = run_serial(plan, job_for(plan.output, predictor_factory="no.such:thing"), settings=quick())
    assert isinstance(outcome.error, UsageError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_shards_finish_and_leaves_the_plan_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    plan = plan_of(tmp_path, 60, 5)
    job = job_for(plan.output, model_options={"delay_s": 0.02})
    before = signal.getsignal(number)

    def interrupt() -> None:
        while not plan.committed():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    outcome = run_serial(plan, job, settings=quick())
    assert outcome.drained
    assert not outcome.finished
    assert outcome.error is None
    assert 0 < outcome.shards_committed < 12
    assert len(rows_in(plan.output)) == 5 * outcome.shards_committed == outcome.rows
    assert signal.getsignal(number) is before
    assert run_serial(plan, job, settings=quick()).finished
    assert len(rows_in(plan.output)) == 60


def test_a_driver_that_lost_its_lease_hands_out_nothing_more_and_says_who_has_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 60, 5)
    store = open_store(str(plan.output))
    with hold_lease(store, "slow", time_to_live_s=0.3) as lease:
        store.put(LEASE_KEY, lease.holder.encode(run_id="other", host="elsewhere", token="2"))
        outcome = run_serial(
            plan, job_for(plan.output, model_options={"delay_s": 0.02}), settings=quick(), refusal=lease.lost_to
        )
    assert isinstance(outcome.error, LeaseHeld)
    assert "was taken over by run other on elsewhere" in outcome.error.message
    assert outcome.shards_committed < 12
    assert run_serial(plan, job_for(plan.output), settings=quick()).finished


def test_the_grace_period_ends(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 3, 3, {1: "hang in infer"})
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    outcome = run_serial(plan, job_for(plan.output), settings=PoolSettings(grace_s=0.3), stop=stop)
    assert outcome.drained
    assert not outcome.finished
    assert time.monotonic() - start < 5


def test_the_driver_commits_where_the_store_ignores_conditions(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 9, 3)
    outcome = run_serial(plan, job_for(plan.output, driver_commits=True), settings=quick())
    assert outcome.finished
    assert len(rows_in(plan.output)) == 9


def test_a_worker_is_replaced_after_its_share(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 10, 1)
    outcome = run_serial(plan, job_for(plan.output, max_shards_per_worker=3), settings=quick())
    assert outcome.finished
    assert outcome.recycled_workers >= 2
    assert len(outcome.worker_start_s) >= 3
    assert len(rows_in(plan.output)) == 10
