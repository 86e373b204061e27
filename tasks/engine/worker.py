"""The worker: holds the model, carries shards out from fetching to the commit. A plain class; Ray only calls it.

Pixels never leave it: descriptors come in, receipts go out. Two shards may be in flight, so that the stages are never
empty at the boundary between them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

from infra.machine import return_free_memory
from infra.outage import Patience
from infra.store import Store, open_store
from tasks.engine.batches import BatchLimits, forward
from tasks.engine.byte_budget import LARGE_BYTES, Shares
from tasks.engine.circuit import FailureStreak
from tasks.engine.clips import Clip, Handover, images_before, is_continued
from tasks.engine.execution import run_as_decided
from tasks.engine.file_writer import FileWriter
from tasks.engine.heartbeat import Heartbeat, HeartbeatWriter, Mark
from tasks.engine.items import (
    Item,
    Task,
    batch_limit,
    bucket_of,
    expected_bytes,
    failure_of,
    fetched_bytes,
    group_of,
    is_untouchable,
    item_bytes,
    left_alone_item,
    missing_rows,
    most_bytes_in_batch,
    row_bytes,
    size_of,
    tasks_of,
    without_misfits,
)
from tasks.engine.job import Assignment, JobSpec, Outcome, Quarantine
from tasks.engine.pipeline import BatchStage, Job, Pipeline, Stage
from tasks.engine.predictors import predictor_of, take_one_thread
from tasks.ingest.planned_rows import IncompleteShardError
from tasks.media.decoding import EntryReader, Frame, decode_fetched, fetch_entry
from tasks.media.images import decoding_bytes
from tasks.output.commit import commit_shard
from tasks.output.encoding import Row, count_items, encode_part, failed_row, ok_row
from tasks.product import find_product
from tasks.records import ItemFailure, Receipt, Shard

if TYPE_CHECKING:
    from modelkit.video import VideoState

logger = logging.getLogger(__name__)

_ATTEMPTS_FOR_ALL_ROWS = 3


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A shard's part and the rows that are in it; seconds by stage so far."""

    rows: list[Row]
    data: bytes
    stage_seconds: dict[str, float]


class Worker:
    """One model, one pipeline. Loads the model when made; :meth:`process` may be called from two threads at once.

    Attributes:
        start_s: seconds that making it took.
        problem: why it does not run the model as the job says; None if it does.

    Raises:
        VersionMismatch: the weights found here are not those of the job's version.
        UsageError: the predictor factory does not exist.
    """

    def __init__(self, job: JobSpec, *, own_process: bool = True) -> None:
        start = time.monotonic()
        self.job = job
        self.beats = HeartbeatWriter(
            num_threads=2 * job.fetch_threads + job.decode_threads + job.encode_threads + 8,
            max_marks=max(job.batch_size, 1),
            catch_signals=own_process,
        )
        if own_process and job.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset without GPUs: then a worker would see all
        self._reader = EntryReader(self._store_at)
        self._output = self._store_at(job.output_uri)
        self._handover = Handover(self._output, job.version)
        self._predictor = predictor_of(job)
        self._threads_before = take_one_thread() if job.device == "cpu" else None
        self._product = find_product(job.version.product)  # the predictor's module may have registered it just now
        self._files = FileWriter(self._output, job, self._product)
        self.problem = run_as_decided(self._predictor, job)
        self._model_in_use = threading.Lock()
        self._limits = BatchLimits(job.batch_size)
        self._streak = FailureStreak(job.max_consecutive_failures)
        weights = getattr(self._predictor, "weights", None)
        self._class_names: dict[int, str] = weights.class_names() if weights is not None else {}
        self._memory = Shares(job.memory_bytes, job.memory_is_limit)
        self.pipeline = Pipeline(self._stages())
        self._shards_done = 0
        self._retries_told, self._lock = 0, threading.Lock()
        self.start_s = time.monotonic() - start

    def process(self, assignment: Assignment) -> Outcome:
        """Carry a shard out and commit it; a probe only tries its items.

        Raises:
            CircuitOpen: too many items failed in a row; nothing of this shard is committed.
            IncompleteShardError: items are without a row; nothing is committed.
            StoreOutage: a store did not answer for as long as the job waits; no item is to blame.
            DeviceLostError: this process is of no use any more.
            StoreError: the output refuses.
        """
        start, shard = time.monotonic(), assignment.shard
        self.beats.begin_shard(shard.shard_id)
        try:
            tasks = tasks_of(assignment, self._state_before(assignment), self._start)
            with self.pipeline.submit(tasks, one_by_one=assignment.one_by_one) as job:
                rows = job.results()
                if assignment.kind == "probe":
                    return self._outcome(None, None, start)
                with self.beats.working("commit", [Mark(shard.shard_id)]):
                    rows = self._complete(assignment, rows)
                    self._hand_over(assignment, tasks)
                    encoded = self._encoded(assignment, job, rows)
                    receipt, part = self._commit(assignment, encoded)
                kinds = Counter(row.failure.error_type for row in encoded.rows if row.failure is not None)
            self._shards_done += 1
            return_free_memory()  # what this shard leaves in pieces would hardly fit the next one's frames
            return self._outcome(receipt, part, start, dict(kinds))
        finally:
            self.beats.end_shard(shard.shard_id)

    def heartbeat(self) -> Heartbeat | None:
        """What the threads are busy with; callable from any other thread."""
        return self.beats.read()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """End the threads, remove the heartbeat, and leave torch's threads to this process as they were."""
        self.pipeline.close(timeout_s=timeout_s)
        self.beats.close()
        if self._threads_before is not None:
            sys.modules["torch"].set_num_threads(self._threads_before)

    def _store_at(self, uri: str) -> Store:
        """A store that is waited for with the job's patience, which the heartbeat tells."""
        patience = Patience(self.job.outage_s, told=lambda outage: self.beats.store_is_silent(uri, outage))
        return open_store(uri, patience=patience, waiting=self.beats.in_store)

    # --- the stages

    def _stages(self) -> Sequence[Stage | BatchStage]:
        job, small = self.job, self._memory.small_bytes
        return [
            Stage("fetch", self._fetch, fetched_bytes, small, threads=job.fetch_threads, expect=expected_bytes),
            Stage(
                "decode",
                self._decode,
                item_bytes,
                self._memory.decoding_bytes,
                threads=job.decode_threads,
                many=True,
                expect=lambda task: task.decoding_bytes,
            ),
            BatchStage(
                "infer",
                self._infer,
                item_bytes,
                small,
                bucket_of=self._bucket_of,
                limit_of=lambda bucket: batch_limit(bucket, job.batch_size),
                group_of=lambda position, task: group_of(position, task, job.batch_size),
            ),
            *self._last_stages(job, small),
        ]

    def _last_stages(self, job: JobSpec, budget_bytes: int) -> list[Stage]:
        if self._product.sink is None:
            return [Stage("encode", self._encode, row_bytes, budget_bytes, threads=job.encode_threads)]
        return [
            Stage("encode", self._encode_item, item_bytes, budget_bytes, threads=job.encode_threads),
            Stage("store", self._store, row_bytes, budget_bytes, threads=job.fetch_threads),
        ]

    def _fetch(self, task: Task) -> Task:
        if is_untouchable(task):
            return task
        with self.beats.working("fetch", [Mark(task.assignment.shard.shard_id, task.index)]):
            fetched = fetch_entry(task.entry, self._reader, self.job.decode)
        if not isinstance(fetched, bytes):
            return replace(task, fetched=fetched)
        wanted = decoding_bytes(fetched, self.job.decode)
        if (refusal := self._memory.refusal(len(fetched), wanted)) is not None:
            return replace(task, fetched=refusal)
        return replace(task, fetched=fetched, decoding_bytes=wanted)

    def _decode(self, task: Task) -> Iterator[Item]:
        yield from self._decode_one(task)
        for piece in task.rest:  # in this thread, so that the clip's frames stay in order
            yield from self._decode_one(self._fetch(piece))

    def _decode_one(self, task: Task) -> Iterator[Item]:
        alone = {q.frame: q for q in task.left_alone}
        if not is_untouchable(task):
            frames, next_frame = self._frames(task), task.entry.first_frame
            while True:
                with self.beats.working("decode", [Mark(task.assignment.shard.shard_id, task.index, next_frame)]):
                    item = next(frames, None)
                    if item is not None:
                        item = self._prepare(item, alone.pop(item.frame.frame, None))
                if item is None:
                    break
                if (task.decoding_bytes or 0) > LARGE_BYTES:
                    return_free_memory()
                next_frame = item.frame.frame + self.job.decode.stride
                yield item
        for verdict in alone.values():  # those that no frame came for: the entry was not touched, or its decoder dies
            yield left_alone_item(task, Frame(verdict.frame, None, None, None), verdict)

    def _frames(self, task: Task) -> Iterator[Item]:
        assert task.fetched is not None
        slim = replace(task, fetched=None)  # what is on its way holds no file any more
        # No loop variable: it would keep the pixels of an image until somebody asks for the one after it.
        return map(lambda frame: Item(slim, frame), decode_fetched(task.entry, task.fetched, self.job.decode))

    def _prepare(self, item: Item, verdict: Quarantine | None) -> Item:
        """Pixels as the model wants them; the source image is let go."""
        image, slim = item.frame.image_rgb_hwc_u8, replace(item.frame, image_rgb_hwc_u8=None)
        if verdict is not None:
            return left_alone_item(item.task, slim, verdict)
        if item.frame.failure is not None or image is None:
            return replace(item, frame=slim).failed(
                item.frame.failure or ItemFailure("decode", "NoPixels", "no pixels")
            )
        try:
            return replace(item, frame=slim, prepared=self._predictor.prepare(image))
        except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
            return replace(item, frame=slim).failed(failure_of("infer", error))

    def _infer(self, items: list[Item]) -> list[Item]:
        clip, prepared = items[0].task.clip, [item.prepared for item in items]
        with self.beats.working("infer", [item.mark for item in items]), self._model_in_use:
            infer = self._predictor.infer if clip is None else lambda frames: [clip.step(self._predictor, *frames)]
            raws = forward(infer, prepared, self._bucket_of(items[0]), self._limits)
        return [
            item.failed(failure_of("infer", raw))
            if isinstance(raw, Exception)
            else replace(item, prepared=None, raw=raw)
            for item, raw in zip(items, raws, strict=True)
        ]

    def _bucket_of(self, item: Item) -> Hashable | None:
        return bucket_of(item, self.job.batch_item_bytes or most_bytes_in_batch(self.job))

    def _encode(self, item: Item) -> Row:
        return self._settled(item, self._row_of(item))

    def _encode_item(self, item: Item) -> Item:
        return replace(item, raw=self._row_of(item))

    def _row_of(self, item: Item) -> Row:
        with self.beats.working("encode", [item.mark]):
            if item.failure is None:
                try:
                    return ok_row(item.task.entry, item.frame, self._predictor.finish(item.raw))
                except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
                    item = item.failed(failure_of("encode", error))
            assert item.failure is not None
            return failed_row(item.task.entry, item.frame, item.failure, item.status)

    def _store(self, item: Item) -> Row:
        """Write the files of a row, before anything says that they exist. A store that refuses ends the shard."""
        row, assignment = item.raw, item.task.assignment
        if row.found is not None:
            with self.beats.working("store", [item.mark]):
                row = self._files.write(row, assignment)
        return self._settled(item, row)

    def _settled(self, item: Item, row: Row) -> Row:
        """The row of an item that is through; a probe's leaves no trace."""
        if item.task.assignment.kind == "process":
            if row.status != "quarantined":
                self._streak.note(row.uri, row.failure)
            self.beats.count(1)
        return row

    # --- clips that shards share

    def _start(self) -> VideoState:
        state: VideoState = self._predictor.start()
        return state

    def _state_before(self, assignment: Assignment) -> VideoState | None:
        """What the shard's first entry starts from; None for models without a memory."""
        shard = assignment.shard
        if not self.job.carries_state:
            return None
        if shard.continues is None:
            return self._start()
        with self.beats.working("fetch", [Mark(shard.shard_id, 0)]):
            left = self._handover.take(shard.continues)
        return left if left is not None else self._replayed(shard)

    def _replayed(self, shard: Shard) -> VideoState:
        """Look at the clip's earlier frames once more, for a state that is lost: somebody removed it.

        Frames that the model refuses are left out, as they were the first time.
        """
        entry, clip = shard.entries[0], Clip(self._start())
        logger.warning("the state before frame %d of %s is lost: it is made again", entry.first_frame, entry.uri)
        for image in images_before(entry, self._reader, self.job.decode):
            with self.beats.working("infer", [Mark(shard.shard_id, 0)]), self._model_in_use, suppress(Exception):
                clip.step(self._predictor, self._predictor.prepare(image))
        return clip.state

    def _hand_over(self, assignment: Assignment, tasks: Sequence[Task]) -> None:
        """Before the commit: leave what the next shard's clip starts from."""
        shard, clip = assignment.shard, tasks[-1].clip
        if clip is not None and is_continued(shard):
            self._handover.leave(shard.shard_id, assignment.attempt_id, clip.state)

    # --- the end of a shard

    def _complete(self, assignment: Assignment, rows: list[Row]) -> list[Row]:
        """The rows of a shard, if those of all its items are there: what is committed is never looked at again.

        An attempt that lacks some fails. The third one says so in failed rows instead: then it is the data, for which
        nobody has found a reason, and it costs its own rows only.

        Raises:
            IncompleteShardError: names what is missing.
        """
        missing = missing_rows(assignment.shard, rows, self.job.decode.stride)
        if missing and assignment.attempt < _ATTEMPTS_FOR_ALL_ROWS:
            raise IncompleteShardError("; ".join(str(row.failure and row.failure.error) for row in missing[:3]))
        return rows + missing

    def _encoded(self, assignment: Assignment, job: Job, rows: list[Row]) -> _Encoded:
        """The shard's part; a result that makes no columns costs its row and no other."""
        start, seconds = time.monotonic(), dict(job.stage_seconds)

        def encode(rows: list[Row]) -> bytes:
            return encode_part(
                rows,
                version=self.job.version,
                plan=assignment.shard.plan,
                shard_id=assignment.shard.shard_id,
                attempt_id=assignment.attempt_id,
                run_id=self.job.run_id,
                stage_seconds=job.stage_seconds,
                class_names=self._class_names,
            )

        try:
            data = encode(rows)
        except Exception:  # noqa: BLE001 - the second try raises again what is no single result's fault
            rows = without_misfits(rows, lambda found: self._product.columns(found, self._class_names))
            data = encode(rows)
        job.keep(len(data))
        seconds["parquet"] = time.monotonic() - start
        return _Encoded(rows, data, seconds)

    def _commit(self, assignment: Assignment, encoded: _Encoded) -> tuple[Receipt, bytes | None]:
        shard, version, part, seconds = assignment.shard, self.job.version, encoded.data, encoded.stage_seconds
        counts = count_items(encoded.rows, self._product)
        bad = [row for row in encoded.rows if row.failure is not None]
        receipt = Receipt(
            shard_id=shard.shard_id,
            attempt_id=assignment.attempt_id,
            outcome="committed",
            rows=counts["rows"],
            ok=counts["ok"],
            failed=counts["failed"],
            quarantined=counts["quarantined"],
            bytes_in=sum(size_of(entry) for entry in shard.entries),
            bytes_out=len(part) + self._files.taken(shard.shard_id),
            stage_seconds=seconds,
            retries=self._new_retries(),
            batch_size=self._limits.largest,
            error_sample=tuple(f"{row.uri}: {row.failure.error}" for row in bad[:5] if row.failure),
        )
        if self.job.driver_commits:
            return receipt, part
        start = time.monotonic()
        outcome = commit_shard(self._output, version, shard.shard_id, part, assignment.attempt_id)
        seconds["commit"] = time.monotonic() - start
        return replace(receipt, outcome=outcome), None

    def _outcome(
        self, receipt: Receipt | None, part: bytes | None, start: float, failures: dict[str, int] | None = None
    ) -> Outcome:
        rss_bytes, infer = psutil.Process().memory_info().rss, self.pipeline.clocks["infer"]
        return Outcome(
            receipt=receipt,
            elapsed_s=time.monotonic() - start,
            rss_bytes=rss_bytes,
            recycle=self._wants_to_be_replaced(rss_bytes),
            infer_busy_s=infer.busy_s,
            infer_idle_s=infer.starved_s + infer.blocked_s,
            peak_bytes=self.pipeline.peak_bytes,
            failures=failures or {},
            part=part,
        )

    def _new_retries(self) -> int:
        """Transient failures of stores that were repeated since the last receipt."""
        with self._lock:
            own = sum(getattr(self._output, "retry_counts", dict)().values())
            total = own + self._reader.num_retries()
            new, self._retries_told = total - self._retries_told, total
            return new

    def _wants_to_be_replaced(self, rss_bytes: int) -> str | None:
        shards, limit = self.job.max_shards_per_worker, self.job.max_rss_bytes
        if shards is not None and self._shards_done >= shards:
            return f"it has done {self._shards_done} shards"
        if limit is not None and rss_bytes > limit:
            return f"it holds {rss_bytes >> 20} MiB of memory, more than {limit >> 20}"
        return None
