"""A store that is gone for a while is no failure of items: the run waits, and no row is lost or failed for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import infra.s3_client
import tasks.media.reading as reading
from infra.errors import StoreOutage
from infra.seaweedfs import S3Endpoint
from infra.store import Store, open_store
from tasks.engine.dispatch import DispatchPolicy
from tasks.engine.pool import PoolSettings, run_serial
from tasks.engine.pool_outcome import PoolOutcome
from tasks.engine.progress import Progress
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tests.faults import Fault, FaultyS3
from tests.tasks.engine.fakes import job_for, version, write_images, write_video

IMAGES, FRAMES = 40, 60


@pytest.fixture(autouse=True)
def _impatient_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts of one request are over in a moment; what is tested is what comes then."""
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("VISIONMILL_STORE_FIRST_DELAY_S", "0.01")


@pytest.fixture
def source(s3_server: S3Endpoint, s3_bucket: str, tmp_path: Path) -> Store:
    """Images and a video in a bucket."""
    write_images(tmp_path / "in", IMAGES)
    write_video(tmp_path / "in", "video.mkv", FRAMES)
    store = open_store(f"{s3_bucket}/in")
    for path in (tmp_path / "in").iterdir():
        store.put(path.name, path.read_bytes())
    return store


def plan_for(source: Store, output: str, folder: Path) -> Plan:
    folder.mkdir(exist_ok=True)
    inventory = take_inventory(source.uri, folder=folder)
    plan = open_plan(open_store(output), version(), inventory, PlanOptions(shard_items=10))
    assert plan is not None
    return plan


def carry_out(plan: Plan, **job: Any) -> tuple[PoolOutcome, list[Progress]]:
    seen: list[Progress] = []
    outcome = run_serial(
        plan,
        job_for(plan.store.uri, **{"model_options": {"delay_s": 0.02}, **job}),
        on_progress=seen.append,
        settings=PoolSettings(policy=DispatchPolicy(), progress_every_s=0.05),
    )
    return outcome, seen


def rows_in(output: str) -> list[dict[str, Any]]:
    store = open_store(output)
    tables = [pq.read_table(store.open(info.key)) for info in store.list("segments/")]
    rows = [row for table in tables for row in table.drop_columns(["run_id", "processed_at"]).to_pylist()]
    return sorted(rows, key=lambda row: (row["uri"], row["frame"]))


@pytest.fixture
def during_the_run(faulty_s3: FaultyS3) -> Iterator[Any]:
    """``outage(fault, seconds)`` begins once the first part is there, and ends after that time (None: never)."""
    threads: list[threading.Thread] = []

    def outage(fault: Fault, seconds: float | None) -> None:
        def happen() -> None:
            while not faulty_s3.count("PUT", "/out/segments/"):
                time.sleep(0.01)
            faulty_s3.add(fault)
            if seconds is not None:
                time.sleep(seconds)
                faulty_s3.clear()

        threads.append(threading.Thread(target=happen, daemon=True))
        threads[-1].start()

    yield outage
    for thread in threads:
        thread.join(10)


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["drop_request", "status"])
def test_a_store_that_is_gone_for_seconds_costs_no_row_and_is_shown(
    source: Store, s3_bucket: str, tmp_path: Path, during_the_run: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WHOLE_BYTES", 0)  # the video comes in blocks while it is decoded
    monkeypatch.setattr(reading, "BLOCK_BYTES", 256)
    monkeypatch.setattr(reading, "MAX_AHEAD_BLOCKS", 1)
    undisturbed, _ = carry_out(plan_for(source, f"{s3_bucket}/whole", tmp_path / "a"), model_options={})
    assert undisturbed.ok == IMAGES + FRAMES
    plan = plan_for(source, f"{s3_bucket}/out", tmp_path / "b")
    during_the_run(Fault(kind, status=503, times=None), 5.0)
    outcome, seen = carry_out(plan)
    assert (outcome.finished, outcome.failed, outcome.ok) == (True, 0, IMAGES + FRAMES)
    assert rows_in(f"{s3_bucket}/out") == rows_in(f"{s3_bucket}/whole")
    told = [progress.outage for progress in seen if progress.outage]
    assert told and "does not answer since" in told[0]
    assert seen[-1].outage == ""


@pytest.mark.s3
def test_after_the_limit_the_run_stops_with_one_message_and_its_plan_open(
    source: Store, s3_bucket: str, tmp_path: Path, during_the_run: Any, faulty_s3: FaultyS3
) -> None:
    plan = plan_for(source, f"{s3_bucket}/out", tmp_path / "b")
    during_the_run(Fault("drop_request", times=None), None)
    outcome, _ = carry_out(plan, outage_s=1.0, max_consecutive_failures=1)
    assert isinstance(outcome.error, StoreOutage)
    assert "has not answered for" in outcome.error.message and "same command" in outcome.error.hint
    assert (outcome.finished, outcome.failed, outcome.lost_workers) == (False, 0, [])
    faulty_s3.clear()
    assert {row["status"] for row in rows_in(f"{s3_bucket}/out")} == {"ok"}
    outcome, _ = carry_out(plan)
    assert (outcome.finished, outcome.failed) == (True, 0)
    assert len(rows_in(f"{s3_bucket}/out")) == IMAGES + FRAMES


@pytest.mark.s3
def test_a_video_that_cannot_be_read_to_its_end_says_so_in_a_row(
    source: Store, s3_bucket: str, tmp_path: Path, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes a read that fails for the end of the file: the frames behind it must not vanish."""
    monkeypatch.setattr(reading, "WHOLE_BYTES", 0)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 256)
    monkeypatch.setattr(reading, "MAX_AHEAD_BLOCKS", 1)
    monkeypatch.setattr(infra.s3_client, "READ_TIMEOUT_S", 0.5)
    plan = plan_for(source, f"{s3_bucket}/out", tmp_path / "b")
    video = replace(plan, num_shards=1)
    faulty_s3.add(Fault("status", method="GET", path="/video.mkv", status=500, code="InternalError", times=None))
    outcome, _ = carry_out(video)
    assert outcome.failed == 1
    (bad,) = [row for row in rows_in(f"{s3_bucket}/out") if row["status"] != "ok"]
    assert (bad["uri"].rpartition("/")[2], bad["stage"]) == ("video.mkv", "fetch")
