"""The worker in this process: every item becomes a row, whatever the model throws; bytes stay bounded; one commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import tasks.engine.items as items_module
import tasks.engine.pipeline as pipeline_module
import tasks.engine.worker as worker_module
from infra.errors import CircuitOpen, UsageError, VersionMismatch
from infra.store import open_store
from tasks.engine.job import Assignment, JobSpec, Outcome, Quarantine
from tasks.engine.worker import Worker
from tasks.ingest.planned_rows import IncompleteShardError, RowFacts, holes
from tasks.media.decoding import DecodeOptions
from tasks.records import Entry, ItemFailure, Receipt, Shard
from tests.tasks.engine import fakes
from tests.tasks.engine.fakes import job_for, shards_of, write_image, write_images, write_video


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Any]:
    """Makes workers that are closed when the test ends."""
    made: list[Worker] = []

    def make(**options: Any) -> Worker:
        made.append(Worker(job_for(tmp_path / "out", **options), own_process=False))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def assign(shard: Shard, **options: Any) -> Assignment:
    return Assignment(shard, attempt_id=f"attempt-of-{shard.shard_id}-0001", **options)


def receipt_of(outcome: Outcome) -> Receipt:
    assert outcome.receipt is not None
    return outcome.receipt


def rows_in(output: Path) -> list[dict[str, Any]]:
    """All committed rows without what differs between runs, sorted."""
    table: pa.Table = ds.dataset(output / "segments", format="parquet", exclude_invalid_files=False).to_table()
    rows = table.drop_columns(["processed_at", "run_id"]).to_pylist()
    return sorted(rows, key=lambda row: (row["uri"], row["frame"]))


def test_a_shard_becomes_one_object_with_one_row_an_item(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 20)
    (shard,) = shards_of(entries, 20)
    receipt = receipt_of(workers().process(assign(shard)))
    assert (receipt.rows, receipt.ok, receipt.failed, receipt.outcome) == (20, 20, 0, "committed")
    rows = rows_in(tmp_path / "out")
    assert [row["uri"] for row in rows] == [entry.uri for entry in entries]
    assert [row["scores"] for row in rows] == [[pytest.approx(i / 255)] for i in range(20)]
    assert {stage for stage, seconds in receipt.stage_seconds.items() if seconds > 0} >= {
        "fetch",
        "decode",
        "infer",
        "commit",
    }
    assert receipt.bytes_in == sum(entry.size_bytes for entry in entries)
    assert len(list((tmp_path / "out" / "segments").rglob("*.parquet"))) == 1


def test_a_second_attempt_at_a_committed_shard_writes_nothing(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 3), 3)
    worker = workers()
    assert receipt_of(worker.process(assign(shard))).outcome == "committed"
    before = rows_in(tmp_path / "out")
    again = Assignment(shard, attempt_id="another-attempt-0002")
    assert receipt_of(worker.process(again)).outcome == "already_committed"
    assert rows_in(tmp_path / "out") == before


@pytest.mark.parametrize("stage", ["prepare", "infer", "finish"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_item_that_makes_the_model_raise_fails_alone(
    workers: Any, tmp_path: Path, stage: str, batch_size: int
) -> None:
    entries = write_images(tmp_path / "in", 9, {4: f"raise in {stage}"})
    receipt = receipt_of(workers(batch_size=batch_size).process(assign(shards_of(entries, 9)[0])))
    assert (receipt.ok, receipt.failed) == (8, 1)
    (bad,) = [row for row in rows_in(tmp_path / "out") if row["status"] != "ok"]
    assert bad["uri"] == entries[4].uri
    assert (bad["stage"], bad["error_type"]) == ("encode" if stage == "finish" else "infer", "ValueError")
    assert bad["error"] == f"told to raise in {stage}"
    assert bad["labels"] is None


def test_a_result_that_fits_into_no_column_costs_its_own_row(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 9, {4: "broken mask"})
    outcome = workers().process(assign(shards_of(entries, 9)[0]))
    assert (outcome.receipt.ok, outcome.receipt.failed, outcome.failures) == (8, 1, {"RleError": 1})
    (bad,) = [row for row in rows_in(tmp_path / "out") if row["status"] != "ok"]
    assert (bad["uri"], bad["stage"], bad["error_type"]) == (entries[4].uri, "encode", "RleError")
    assert bad["labels"] is None and (bad["height"], bad["width"]) == (8, 8)


def test_unreadable_items_are_rows_with_a_reason(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 4)
    Path(entries[0].uri).unlink()
    Path(entries[1].uri).write_bytes(b"not an image")
    receipt = receipt_of(workers().process(assign(shards_of(entries, 4)[0])))
    assert (receipt.rows, receipt.ok, receipt.failed) == (4, 2, 2)
    rows = rows_in(tmp_path / "out")
    assert [(row["status"], row["stage"]) for row in rows[:2]] == [("failed", "fetch"), ("failed", "fetch")]
    assert [row["error_type"] for row in rows[:2]] == ["ObjectGone", "ObjectChanged"]


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_out_of_memory_halves_the_batch_gives_the_same_rows_and_is_remembered(
    workers: Any, tmp_path: Path, fits: int
) -> None:
    entries = write_images(tmp_path / "in", 40)
    first, second = shards_of(entries, 20)
    worker = workers(batch_size=8, model_options={"fits": fits, "delay_s": 0.002})
    assert receipt_of(worker.process(assign(first))).ok == 20
    predictor = worker._predictor
    assert max(predictor.batches) <= fits
    calls = []
    original = predictor.infer
    predictor.infer = lambda prepared: calls.append(len(prepared)) or original(prepared)
    receipt = receipt_of(worker.process(assign(second)))
    assert receipt.ok == 20
    assert max(calls) <= fits  # not one attempt more above the ceiling
    assert receipt.batch_size <= fits
    assert [row["scores"][0] for row in rows_in(tmp_path / "out")] == [pytest.approx(i / 255) for i in range(40)]


def test_an_item_that_does_not_even_fit_alone_is_a_failed_row(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 12, {5: "out of memory alone"})
    receipt = receipt_of(workers(batch_size=4).process(assign(shards_of(entries, 12)[0])))
    assert (receipt.ok, receipt.failed) == (11, 1)
    (bad,) = [row for row in rows_in(tmp_path / "out") if row["status"] == "failed"]
    assert (bad["uri"], bad["stage"]) == (entries[5].uri, "infer")
    assert "out of memory" in bad["error"]


def test_items_in_quarantine_are_not_touched_and_keep_a_row(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 6, {2: "abort in infer"})
    verdict = Quarantine(2, 0, ItemFailure("infer", "WorkerCrash", "its worker died of SIGABRT"))
    receipt = receipt_of(workers().process(assign(shards_of(entries, 6)[0], quarantined=(verdict,))))
    assert (receipt.ok, receipt.failed, receipt.quarantined) == (5, 0, 1)
    row = rows_in(tmp_path / "out")[2]
    assert (row["status"], row["stage"], row["error_type"]) == ("quarantined", "infer", "WorkerCrash")


@pytest.mark.parametrize("rest", [False, True])
def test_a_frame_in_quarantine_keeps_a_row_and_only_takes_later_ones_along_if_it_must(
    workers: Any, tmp_path: Path, rest: bool
) -> None:
    video = write_video(tmp_path / "in", "v.mkv", 20, {7: "abort in infer"})
    verdict = Quarantine(0, 7, ItemFailure("infer", "WorkerCrash", "its worker died of SIGABRT"), rest=rest)
    receipt = receipt_of(workers().process(assign(shards_of([video], 1)[0], quarantined=(verdict,))))
    rows = rows_in(tmp_path / "out")
    assert [row["frame"] for row in rows] == list(range(8 if rest else 20))
    assert (receipt.ok, receipt.quarantined) == (len(rows) - 1, 1)
    assert rows[7]["status"] == "quarantined"
    assert [row["scores"] for row in rows if row["frame"] != 7] == [
        [pytest.approx(row["frame"] / 255)] for row in rows if row["frame"] != 7
    ]


def test_a_shard_of_which_a_stride_skips_every_frame_is_committed_without_rows(workers: Any, tmp_path: Path) -> None:
    video = replace(write_video(tmp_path / "in", "v.mkv", 20), first_frame=3, end_frame=9)
    worker = workers(decode=DecodeOptions(stride=10))
    assert receipt_of(worker.process(assign(shards_of([video], 1)[0]))).rows == 0
    assert len(list((tmp_path / "out" / "segments").rglob("*.parquet"))) == 1


def test_a_probe_of_a_video_stops_before_its_end_frame(workers: Any, tmp_path: Path) -> None:
    video = write_video(tmp_path / "in", "v.mkv", 20, {7: "raise in infer"})
    worker = workers()
    worker.process(assign(shards_of([video], 1)[0], kind="probe", only=(0,), end_frame=7))
    assert sum(worker._predictor.batches) == 7


def test_a_probe_tries_only_its_items_and_commits_nothing(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 6, {2: "raise in infer"})
    worker = workers()
    outcome = worker.process(assign(shards_of(entries, 6)[0], kind="probe", only=(0, 2, 5)))
    assert outcome.receipt is None
    assert sum(worker._predictor.batches) == 2
    assert not (tmp_path / "out" / "segments").exists()


def test_too_many_failures_in_a_row_open_the_circuit_before_anything_is_committed(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 90, dict.fromkeys(range(5, 90), "raise in infer"))
    with pytest.raises(CircuitOpen, match="told to raise in infer") as caught:
        workers(max_consecutive_failures=20).process(assign(shards_of(entries, 90)[0]))
    assert "in a row" in caught.value.message
    assert not (tmp_path / "out" / "segments").exists()


def test_bad_data_does_not_open_the_circuit_as_soon_as_a_broken_model(workers: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    entries = write_images(folder, 30)
    broken = [Entry(e.uri, "unknown:3", 3, "image") for e in entries]
    for entry in entries:
        Path(entry.uri).write_bytes(b"bad")
    worker = workers(max_consecutive_failures=20)
    assert receipt_of(worker.process(assign(shards_of(broken, 30)[0]))).failed == 30


class SlowStore:
    """A store of which some calls take long."""

    def __init__(self, store: Any, delay_s: float, calls: set[str]) -> None:
        self._store, self._delay_s, self._calls = store, delay_s, calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in self._calls:
            return value

        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(self._delay_s)
            return value(*args, **kwargs)

        return slow


def slow_stores(monkeypatch: pytest.MonkeyPatch, delay_s: float, *calls: str) -> None:
    """All stores of workers are slow in these calls."""
    monkeypatch.setattr(
        worker_module, "open_store", lambda uri, **more: SlowStore(open_store(uri, **more), delay_s, set(calls))
    )


@pytest.mark.parametrize("slow_stage", ["read", "write"])
def test_bytes_in_flight_stay_below_the_budget_with_a_store_ten_times_slower(
    workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_stage: str
) -> None:
    size_hw, count = (80, 100), 120
    folder = tmp_path / "in"
    entries = [write_image(folder, i, size_hw=size_hw) for i in range(count)]
    shards = shards_of(entries, 30)
    budget_bytes = 480_000  # decoded pixels of 20 images; all of them would be 2,880,000
    if slow_stage == "read":
        slow_stores(monkeypatch, 0.01, "get", "read_range")
    else:
        slow_stores(monkeypatch, 0.3, "put_if_absent")
    worker = workers(memory_bytes=budget_bytes, model_options={"delay_s": 0.001}, batch_size=4)
    seen, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            seen.append(worker.pipeline.bytes_in_flight)

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=lambda shard=shard: worker.process(assign(shard))) for shard in shards[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shard in shards[2:]:
        worker.process(assign(shard))
    stop.set()
    watcher.join()
    assert len(rows_in(tmp_path / "out")) == count
    assert 0 < max(seen) <= worker.pipeline.peak_bytes < budget_bytes
    assert worker.pipeline.bytes_in_flight == 0


def test_the_next_shard_is_prefetched_so_that_the_model_hardly_waits_at_the_boundary(
    workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(write_images(tmp_path / "in", 60), 10)
    slow_stores(monkeypatch, 0.05, "put_if_absent")
    idle = {}
    for in_flight in (1, 2):
        worker = workers(output_uri=str(tmp_path / f"out{in_flight}"), model_options={"delay_s": 0.01})
        gate = threading.Semaphore(in_flight)
        threads = []

        def run(shard: Shard, worker: Worker = worker, gate: threading.Semaphore = gate) -> None:
            worker.process(assign(shard))
            gate.release()

        for shard in shards:
            gate.acquire()
            threads.append(threading.Thread(target=run, args=(shard,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        clock = worker.pipeline.clocks["infer"]
        idle[in_flight] = clock.starved_s / (clock.starved_s + clock.busy_s)
    assert idle[1] > 0.25  # six commits of 50 ms beside 600 ms of model
    assert idle[2] < 0.6 * idle[1]


def test_the_heartbeat_says_what_a_worker_is_busy_with(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 5, {3: "slow"})
    (shard,) = shards_of(entries, 5)
    worker = workers(fetch_threads=1)
    thread = threading.Thread(target=worker.process, args=(assign(shard),))
    thread.start()
    seen = None
    deadline = time.monotonic() + 5
    while seen is None and time.monotonic() < deadline:
        beat = worker.heartbeat()
        assert beat is not None
        oldest = beat.oldest(shard.shard_id)
        if oldest is not None and oldest.stage == "infer" and oldest.marks[0].entry == 3:
            seen = (beat, oldest)
    thread.join()
    assert seen is not None
    assert seen[1].marks[0].shard_id == shard.shard_id
    after = worker.heartbeat()
    assert after is not None
    assert (after.items_done, after.working) == (5, ())


def test_a_worker_asks_to_be_replaced_after_its_share(workers: Any, tmp_path: Path) -> None:
    first, second = shards_of(write_images(tmp_path / "in", 2), 1)
    worker = workers(max_shards_per_worker=2)
    assert worker.process(assign(first)).recycle is None
    assert "2 shards" in worker.process(assign(second)).recycle
    assert "memory" in workers(max_rss_bytes=1 << 20, output_uri=str(tmp_path / "b")).process(assign(first)).recycle


def test_the_driver_gets_the_bytes_when_it_has_to_commit(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 2), 2)
    outcome = workers(driver_commits=True).process(assign(shard))
    assert outcome.part is not None
    assert not (tmp_path / "out" / "segments").exists()


def test_a_job_refuses_a_credential_and_an_unknown_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretvalue")
    with pytest.raises(UsageError, match="credential") as caught:
        job_for(tmp_path, model_options={"key": "topsecretvalue"})
    assert "topsecretvalue" not in str(caught.value)
    with pytest.raises(UsageError, match="no function"):
        Worker(job_for(tmp_path, predictor_factory="tests.tasks.engine.fakes:absent"), own_process=False)


def test_weights_other_than_the_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(job: JobSpec) -> Any:
        predictor = fakes.FakePredictor()
        predictor.rows_digest = "1" * 64  # type: ignore[attr-defined]
        return predictor

    monkeypatch.setattr(fakes, "make", make)
    with pytest.raises(VersionMismatch, match="digest"):
        Worker(job_for(tmp_path), own_process=False)


def test_a_part_whose_frames_are_not_all_there_is_not_committed_until_it_says_so_itself(
    workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that loses frames without a word: two attempts fail, the third has a failed row for each run."""
    honest = items_module.decode_fetched

    def forgetful(*arguments: Any) -> Iterator[Any]:
        return (frame for frame in honest(*arguments) if frame.frame not in (3, 4, 8, 9))

    monkeypatch.setattr(items_module, "decode_fetched", forgetful)
    (shard,) = shards_of([write_video(tmp_path / "in", "v.mkv", 10)], 1)
    worker = workers()
    for attempt in (1, 2):
        with pytest.raises(IncompleteShardError, match="frames 3 to 4 are missing"):
            worker.process(assign(shard, attempt=attempt))
    assert not list((tmp_path / "out").glob("segments/*/*.parquet"))
    assert receipt_of(worker.process(assign(shard, attempt=3))).failed == 2
    rows = rows_in(tmp_path / "out")
    assert [row["frame"] for row in rows] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert {row["frame"]: row["error_type"] for row in rows if row["status"] != "ok"} == {
        3: "FramesMissing",
        8: "FramesMissing",
    }
    facts = [RowFacts(r["uri"], r["etag"], r["frame"], r["status"] == "ok", r["error"] or "") for r in rows]
    assert list(holes(shard, facts, 1)) == []


def test_rows_up_to_a_video_s_last_frame_are_asked_for_where_the_plan_leaves_its_end_open(
    workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(write_video(tmp_path / "in", "v.mkv", 10), end_frame=None)
    (shard,) = shards_of([entry], 1)
    worker, results = workers(), pipeline_module.Job.results
    monkeypatch.setattr(pipeline_module.Job, "results", lambda job: results(job)[:-2])
    with pytest.raises(IncompleteShardError, match="frames 8 to 9 are missing"):
        worker.process(assign(shard))
    monkeypatch.undo()
    assert receipt_of(worker.process(assign(shard, attempt=2))).ok == 10
