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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil

from infra.machine import return_free_memory
from infra.outage import Patience
from infra.store import Store, open_store
from tasks.engine.clips import Clip, Handover, frames_before, is_continued, runs_of
from tasks.engine.execution import run_as_decided
from tasks.engine.file_writer import FileWriter
from tasks.engine.heartbeat import Heartbeat, HeartbeatWriter, Mark
from tasks.engine.items import ItemStages, Task, completed, prepared_item, size_of
from tasks.engine.job import Assignment, JobSpec, Outcome
from tasks.engine.pipeline import Job, Pipeline
from tasks.engine.predictors import predictor_of, take_one_thread
from tasks.media.decoding import EntryReader
from tasks.output.commit import commit_shard
from tasks.output.encoding import count_items, encode_sound
from tasks.product import find_product
from tasks.records import Entry, ItemFailure, Receipt, Shard

if TYPE_CHECKING:
    from modelkit.video import VideoState

logger = logging.getLogger(__name__)


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
        weights = getattr(self._predictor, "weights", None)
        self._class_names: dict[int, str] = weights.class_names() if weights is not None else {}
        self._stages = ItemStages(job, self._predictor, self._reader, self._files, self.beats)
        self.pipeline = Pipeline(self._stages.in_order())
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
                if assignment.kind == "probe":
                    tried = sum(row.media == "image" or row.status == "ok" for row in job.results())
                    return replace(self._outcome(start), tried=tried)
                receipt, part, failures = self._committed(assignment, tasks, job)
            self._shards_done += 1
            return_free_memory()  # what this shard leaves in pieces would hardly fit the next one's frames
            return self._outcome(start, receipt, part, failures)
        finally:
            self._stages.ends.pop(assignment.attempt_id, None)
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
        for frame in frames_before(entry, self._reader, self.job.decode):
            assert frame.image_rgb_hwc_u8 is not None
            with self.beats.working("infer", [Mark(shard.shard_id, 0)]), self._stages.model_in_use, suppress(Exception):
                clip.step(self._predictor, prepared_item(self._predictor, frame.image_rgb_hwc_u8, entry, frame))
        return clip.state

    def _hand_over(self, assignment: Assignment, tasks: Sequence[Task]) -> None:
        """Before the commit: leave what the next shard's clip starts from."""
        shard, clip = assignment.shard, tasks[-1].clip
        if clip is not None and is_continued(shard):
            self._handover.leave(shard.shard_id, assignment.attempt_id, clip.state)

    # --- the end of a shard

    def _committed(
        self, assignment: Assignment, tasks: Sequence[Task], job: Job
    ) -> tuple[Receipt, bytes | None, dict[str, int]]:
        """Wait for a shard's rows, make its part and commit it.

        Returns:
            The receipt, the part where the driver commits it, and failures by kind of error.
        """
        shard, version, rows = assignment.shard, self.job.version, job.results()
        seconds = dict(job.stage_seconds)
        with self.beats.working("commit", [Mark(shard.shard_id)], len(rows)):
            rows = completed(assignment, rows, self.job.decode.stride, self._stages.ends[assignment.attempt_id])
            self._hand_over(assignment, tasks)
            start = time.monotonic()
            sound, part = encode_sound(
                rows,
                version=version,
                plan=shard.plan,
                shard_id=shard.shard_id,
                attempt_id=assignment.attempt_id,
                run_id=self.job.run_id,
                stage_seconds=job.stage_seconds,
                class_names=self._class_names,
            )
            job.keep(len(part))
            seconds["parquet"] = time.monotonic() - start
            failures = [(row.uri, row.failure) for row in sound if row.failure is not None]
            kinds = dict(Counter(failure.error_type for _, failure in failures))
            receipt = self._receipt(assignment, count_items(sound, self._product), failures, len(part), seconds)
            if self.job.driver_commits:
                return receipt, part, kinds
            start = time.monotonic()
            outcome = commit_shard(self._output, version, shard.shard_id, part, assignment.attempt_id)
            seconds["commit"] = time.monotonic() - start
            return replace(receipt, outcome=outcome), None, kinds

    def _receipt(
        self,
        assignment: Assignment,
        counts: dict[str, int],
        failures: Sequence[tuple[str, ItemFailure]],
        part_bytes: int,
        seconds: dict[str, float],
    ) -> Receipt:
        shard = assignment.shard
        return Receipt(
            shard_id=shard.shard_id,
            attempt_id=assignment.attempt_id,
            outcome="committed",
            rows=counts["rows"],
            ok=counts["ok"],
            failed=counts["failed"],
            quarantined=counts["quarantined"],
            bytes_in=sum(size_of(entry) for entry in shard.entries),
            bytes_out=part_bytes + self._files.taken(shard.shard_id),
            stage_seconds=seconds,
            retries=self._new_retries(),
            batch_size=self._stages.limits.largest,
            error_sample=tuple(f"{uri}: {failure.error}" for uri, failure in failures[:5]),
        )

    def _outcome(
        self,
        start: float,
        receipt: Receipt | None = None,
        part: bytes | None = None,
        failures: dict[str, int] | None = None,
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


def tasks_of(assignment: Assignment, state: VideoState | None, start: Callable[[], VideoState]) -> list[Task]:
    """What enters the pipeline: an image, a piece of a video, or (with a memory) all pieces of a clip as one task.

    Args:
        state: what the clip of the shard's first entry starts from; None for models without a memory.
        start: what any other clip starts from.
    """
    tasks = []
    for run in runs_of(assignment.entries()):
        pieces = [_task(assignment, index, entry) for index, entry in run]
        if state is None or run[0][1].media == "image":
            tasks += pieces
            continue
        clip = Clip(state if run[0][0] == 0 else start())
        first, *rest = (replace(piece, clip=clip) for piece in pieces)
        tasks.append(replace(first, rest=tuple(rest)))
    return tasks


def _task(assignment: Assignment, index: int, entry: Entry) -> Task:
    alone = tuple(q for q in assignment.quarantined if q.entry == index)
    ends = [q.frame for q in alone if q.rest] + ([] if assignment.end_frame is None else [assignment.end_frame])
    if entry.media == "video" and ends:
        end = min(ends) if entry.end_frame is None else min(*ends, entry.end_frame)
        entry = replace(entry, end_frame=end)
    return Task(assignment, index, entry, alone)
