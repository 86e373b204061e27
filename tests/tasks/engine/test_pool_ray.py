"""The pool on a real Ray with real deaths: same rows, the guilty named, nobody left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import CircuitOpen, ServiceError
from infra.ray_session import RaySession, ray_session
from infra.retry import RetryPolicy
from tasks.engine.dispatch import DispatchPolicy
from tasks.engine.hangs import HangLimits
from tasks.engine.heartbeat import read_heartbeat
from tasks.engine.job import JobSpec
from tasks.engine.pool import PoolSettings, run_pool, run_serial
from tasks.engine.progress import Progress
from tasks.output.layout import STATES_FOLDER
from tests.tasks.engine.fakes import COMPUTING_S, job_for, shards_of, write_video
from tests.tasks.engine.test_clips import found_in
from tests.tasks.engine.test_clips import plan_of as clips_plan
from tests.tasks.engine.test_pool_serial import ListPlan, plan_of
from tests.tasks.engine.test_worker import rows_in
from tests.tasks.engine.video_fakes import video_job, write_clip

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@pytest.fixture(scope="module")
def session(services_dir: Path) -> Iterator[RaySession]:
    """A local Ray with two processors, for this module; its token is the session's, which Ray reads only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONMILL_STATE_DIR", str(services_dir))
        with ray_session(num_cpus=2, object_store_bytes=80 << 20) as opened:
            yield opened


QUICK = PoolSettings(
    policy=DispatchPolicy(
        backoff=RetryPolicy(first_delay_s=0.05, max_delay_s=0.2),
    ),
    progress_every_s=0.1,
)


def worker_pids() -> set[int]:
    """Running processes below this one that have a heartbeat: our workers. One that waits to be reaped is none.

    A folder that is older than the process is that of a killed one whose number it was given.
    """
    below = psutil.Process().children(recursive=True)
    born = {
        child.pid: child.create_time()
        for child in below
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    }
    found = set()
    for folder in Path(tempfile.gettempdir()).glob("visionmill-heartbeat-*"):
        beat = read_heartbeat(folder)
        with contextlib.suppress(FileNotFoundError):  # of another test, beside this one, that has just ended
            if beat is not None and born.get(beat.pid, float("inf")) <= folder.stat().st_mtime:
                found.add(beat.pid)
    return found


def expected_rows(plan: ListPlan) -> list[str]:
    return [entry.uri for shard in plan.all_shards for entry in shard.entries]


def test_rows_progress_and_figures_of_an_undisturbed_run(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 60, 6, {7: "raise in infer"})
    seen: list[Progress] = []
    outcome = run_pool(
        plan,
        job_for(plan.output, model_options={"delay_s": 0.02}),
        session=session,
        workers=2,
        on_progress=seen.append,
        settings=QUICK,
    )
    assert outcome.finished
    assert (outcome.rows, outcome.ok, outcome.failed) == (60, 59, 1)
    assert [row["uri"] for row in rows_in(plan.output)] == expected_rows(plan)
    assert len({attempt.worker for attempt in outcome.attempts}) == 2
    assert len(outcome.worker_start_s) == 2
    assert min(outcome.worker_start_s) > 0
    assert outcome.peak_rss_bytes > 50 << 20
    assert not outcome.lost_workers
    assert [p.items_done for p in seen] == sorted(p.items_done for p in seen)
    assert seen[-1].shards_done == 10
    assert not worker_pids(), [
        psutil.Process(pid).as_dict(["cmdline", "status", "ppid", "create_time"]) for pid in worker_pids()
    ]


class Killer(threading.Thread):
    """Sends SIGKILL to one worker as soon as it is in the middle of a shard; ``times`` in all."""

    def __init__(self, times: int = 1) -> None:
        super().__init__(daemon=True)
        self.times, self.killed = times, set[int]()

    def run(self) -> None:
        deadline = time.monotonic() + 1000
        while len(self.killed) < self.times and time.monotonic() < deadline:
            time.sleep(0.05)
            for folder in Path(tempfile.gettempdir()).glob("visionmill-heartbeat-*"):
                beat = read_heartbeat(folder)
                if beat is None or beat.pid in self.killed or beat.pid not in worker_pids():
                    continue
                if beat.items_done >= 3 and beat.oldest() is not None and len(self.killed) < self.times:
                    self.killed.add(beat.pid)
                    os.kill(beat.pid, signal.SIGKILL)


def test_killing_workers_in_mid_shard_costs_no_row_and_blames_no_item(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 80, 10)
    killer = Killer(times=2)
    killer.start()
    outcome = run_pool(
        plan, job_for(plan.output, model_options={"delay_s": 0.05}), session=session, workers=2, settings=QUICK
    )
    killer.join()
    assert len(killer.killed) == 2
    assert outcome.finished
    assert len(outcome.lost_workers) == 2
    assert all("SIGKILL" in lost.cause for lost in outcome.lost_workers)
    assert not outcome.quarantined_items
    rows = rows_in(plan.output)
    assert [row["uri"] for row in rows] == expected_rows(plan)
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("how", ["abort", "kill"])
def test_items_that_kill_their_worker_are_quarantined_and_cost_no_neighbour_its_row(
    session: RaySession, tmp_path: Path, how: str
) -> None:
    plan = plan_of(tmp_path, 24, 8, {3: f"{how} in infer", 20: f"{how} in prepare"})
    job = job_for(plan.output, decode_threads=1, fetch_threads=1)
    outcome = run_pool(plan, job, session=session, workers=2, settings=QUICK)
    assert outcome.error is None
    assert outcome.finished
    rows = rows_in(plan.output)
    assert [row["uri"] for row in rows] == expected_rows(plan)
    bad = {i: row for i, row in enumerate(rows) if row["status"] != "ok"}
    assert {i: (row["status"], row["error_type"], row["stage"]) for i, row in bad.items()} == {
        3: ("quarantined", "WorkerCrash", "infer"),
        20: ("quarantined", "WorkerCrash", "decode"),
    }
    assert all(("SIGABRT" if how == "abort" else "SIGKILL") in row["error"] for row in bad.values())
    assert sorted(uri for uri, _ in outcome.quarantined_items) == [row["uri"] for row in bad.values()]
    assert len(outcome.lost_workers) <= 2 * (3 if how == "abort" else 5)


def test_a_frame_of_a_video_that_kills_its_worker_is_named(session: RaySession, tmp_path: Path) -> None:
    video = write_video(tmp_path / "in", "v.mkv", 30, {17: "abort in infer"})
    (tmp_path / "out").mkdir()
    plan = ListPlan(tmp_path / "out", shards_of([video], 1))
    outcome = run_pool(plan, job_for(plan.output), session=session, workers=1, settings=QUICK)
    assert outcome.finished
    rows = rows_in(plan.output)
    assert [row["frame"] for row in rows] == list(range(30))
    assert [row["frame"] for row in rows if row["status"] == "quarantined"] == [17]
    assert outcome.ok == 29


def test_an_item_that_hangs_is_quarantined_with_its_stage_named(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 8, 4, {5: "hang in infer"})
    settings = PoolSettings(policy=DispatchPolicy(backoff=RetryPolicy(first_delay_s=0.05)), hangs=HangLimits(quiet_s=3))
    outcome = run_pool(plan, job_for(plan.output), session=session, workers=2, settings=settings)
    assert outcome.finished
    (bad,) = [row for row in rows_in(plan.output) if row["status"] != "ok"]
    assert bad["uri"] == expected_rows(plan)[5]
    assert (bad["status"], bad["stage"], bad["error_type"]) == ("quarantined", "infer", "WorkerHang")
    assert len(rows_in(plan.output)) == 8
    assert outcome.lost_workers
    assert all(lost.hung for lost in outcome.lost_workers)


def test_an_item_whose_work_a_thread_or_a_process_does_is_an_item_like_any_other(
    session: RaySession, tmp_path: Path
) -> None:
    acts = {2: "let a thread compute in infer", 5: "let a process compute in infer"}
    plan = plan_of(tmp_path, 8, 4, acts)
    settings = replace(QUICK, hangs=HangLimits(quiet_s=COMPUTING_S - 0.5))  # others are asked after 1 s of sleep
    outcome = run_pool(plan, job_for(plan.output), session=session, workers=1, settings=settings)
    assert (outcome.finished, outcome.ok, outcome.lost_workers) == (True, 8, [])


def test_an_endless_loop_ends_once_it_took_clearly_longer_than_other_items(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 8, 2, {5: "loop in infer"})
    hangs = HangLimits(any_item_s=1.0, unknown_s=3600.0)  # one that knows only the loop would wait for ever
    settings = replace(QUICK, hangs=hangs)
    outcome = run_pool(plan, job_for(plan.output), session=session, workers=2, settings=settings)
    assert outcome.finished
    (bad,) = [row for row in rows_in(plan.output) if row["status"] != "ok"]
    assert (bad["uri"], bad["status"], bad["stage"]) == (expected_rows(plan)[5], "quarantined", "infer")
    assert "computed in infer for" in bad["error"] and "--item-minutes" in bad["error"]
    assert {lost.cause.split(" for ")[0] for lost in outcome.lost_workers} == {"computed in infer"}


def test_workers_are_replaced_after_their_share_of_shards(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 12, 2)
    outcome = run_pool(plan, job_for(plan.output, max_shards_per_worker=2), session=session, workers=1, settings=QUICK)
    assert outcome.finished
    assert not outcome.lost_workers
    assert outcome.recycled_workers >= 2
    assert len(rows_in(plan.output)) == 12


def test_out_of_memory_in_a_worker_gives_the_same_rows(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 20, 10)
    job = job_for(plan.output, batch_size=8, model_options={"fits": 3, "delay_s": 0.005})
    outcome = run_pool(plan, job, session=session, workers=1, settings=QUICK)
    assert outcome.finished
    assert outcome.batch_size <= 3
    assert outcome.ok == 20
    assert [row["uri"] for row in rows_in(plan.output)] == expected_rows(plan)


def test_a_broken_model_opens_the_circuit_and_leaves_the_plan_open(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 60, 10, dict.fromkeys(range(60), "raise in infer"))
    outcome = run_pool(
        plan, job_for(plan.output, max_consecutive_failures=15), session=session, workers=1, settings=QUICK
    )
    assert isinstance(outcome.error, CircuitOpen)
    assert "told to raise in infer" in outcome.error.message
    assert not outcome.finished


def abort_at_once(job: JobSpec) -> Any:
    """A model whose loading kills the process."""
    os.abort()


def test_workers_that_cannot_start_end_the_run_with_the_reason(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 2, 1)
    outcome = run_pool(
        plan, job_for(plan.output, model_options={"surprise": 1}), session=session, workers=1, settings=QUICK
    )
    assert isinstance(outcome.error, ServiceError)
    assert "surprise" in outcome.error.message
    job = job_for(plan.output, predictor_factory="tests.tasks.engine.test_pool_ray:abort_at_once")
    settings = PoolSettings(policy=QUICK.policy, start_failures=2)
    outcome = run_pool(plan, job, session=session, workers=1, settings=settings)
    assert isinstance(outcome.error, ServiceError)
    assert "while starting" in outcome.error.message


def test_what_can_never_be_scheduled_is_refused_at_once(session: RaySession, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 2, 1)
    with pytest.raises(ServiceError):
        run_pool(plan, job_for(plan.output), session=session, num_gpus=1.0)
    with pytest.raises(ServiceError):
        run_pool(plan, job_for(plan.output), session=session, workers=99)


def test_clips_cut_into_shards_keep_their_ids_when_a_worker_is_killed_in_the_middle(
    session: RaySession, tmp_path: Path
) -> None:
    """The rows of two workers, one of which dies, equal those of an uncut run in this process."""
    for clip in range(2):
        write_clip(tmp_path / "in", clip, 40, {23: "raise in infer"})
    plan = clips_plan(tmp_path / "in", tmp_path / "out", 8)
    killer = Killer()
    killer.start()
    job = video_job(plan.store.uri, model_options={"delay_s": 0.05})
    outcome = run_pool(plan, job, session=session, workers=2, settings=QUICK)
    killer.join()
    assert (len(killer.killed), len(outcome.lost_workers)) == (1, 1)
    assert (outcome.finished, outcome.failed, outcome.quarantined_items) == (True, 2, [])
    assert {attempt.end for attempt in outcome.attempts} >= {"committed", "died"}
    assert not list(plan.store.list(STATES_FOLDER))
    whole = clips_plan(tmp_path / "in", tmp_path / "whole", 1000)
    assert run_serial(whole, video_job(whole.store.uri), settings=QUICK).finished
    assert found_in(tmp_path / "out") == found_in(tmp_path / "whole")
