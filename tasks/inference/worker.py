"""The worker: holds the model, carries shards out from fetching to the commit. A plain class; Ray only calls it.

Pixels never leave it: descriptors come in, receipts go out. Two shards may be in flight, so that the stages are never
empty at the boundary between them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import psutil

from infra.errors import VersionMismatch
from infra.redaction import redact
from infra.store import open_store
from tasks.inference.circuit import FailureStreak
from tasks.inference.decoding import Fetched, Frame, decode_fetched, fetch_entry
from tasks.inference.execution import run_as_decided
from tasks.inference.forward import BatchLimits, forward
from tasks.inference.job import Assignment, JobSpec, Outcome, Quarantine, resolve
from tasks.inference.model_source import local_model
from tasks.inference.pulse import Heartbeat, Mark, Pulse
from tasks.inference.reading import EntryReader
from tasks.inference.stages import BatchStage, Job, Pipeline, Stage
from tasks.records import Entry, ItemFailure, Receipt, Status
from tasks.results.commit import commit_shard
from tasks.results.encoding import count_items, encode_part
from tasks.results.rows import Row, failed_row, ok_row

_READER_BYTES = 8 << 20  # what an open video holds in blocks, about


@dataclass(frozen=True, slots=True)
class _Task:
    """An entry on its way to decoding."""

    assignment: Assignment
    index: int
    entry: Entry
    left_alone: tuple[Quarantine, ...]
    fetched: Fetched | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    """A frame on its way to a row: prepared pixels, then a raw result, or the failure that stands for them."""

    task: _Task
    frame: Frame
    prepared: Any = None
    raw: Any = None
    failure: ItemFailure | None = None
    status: Status = "ok"

    @property
    def mark(self) -> Mark:
        return Mark(self.task.assignment.shard.shard_id, self.task.index, self.frame.frame)

    def failed(self, failure: ItemFailure, status: Status = "failed") -> _Item:
        return replace(self, prepared=None, raw=None, failure=failure, status=status)


class Worker:
    """One model, one pipeline. Loads the model when made; :meth:`process` may be called from two threads at once.

    Raises:
        VersionMismatch: the weights found here are not those of the job's version.
        UsageError: the predictor factory does not exist.
    """

    def __init__(self, job: JobSpec, *, own_process: bool = True) -> None:
        start = time.monotonic()
        self.job = job
        self.pulse = Pulse(
            num_threads=job.fetch_threads + job.decode_threads + job.encode_threads + 8,
            max_marks=max(job.batch_size, 1),
            catch_signals=own_process,
        )
        if own_process:
            _own_the_process(job)
        self._reader = EntryReader()
        self._output = open_store(job.output_uri)
        self._predictor = resolve(job.predictor_factory)(job) if job.predictor_factory else load_predictor(job)
        _check_digest(self._predictor, job)
        run_as_decided(self._predictor, job)
        self._limits = BatchLimits(job.batch_size)
        self._streak = FailureStreak(job.max_consecutive_failures)
        weights = getattr(self._predictor, "weights", None)
        self._class_names: dict[int, str] = weights.class_names() if weights is not None else {}
        self.pipeline = Pipeline(self._stages())
        self._shards_done = 0
        self._retries_told, self._lock = 0, threading.Lock()
        self.start_s = time.monotonic() - start

    def process(self, assignment: Assignment) -> Outcome:
        """Carry a shard out and commit it; a probe only tries its items.

        Raises:
            CircuitOpen: too many items failed in a row; nothing of this shard is committed.
            DeviceLostError: this process is of no use any more.
            StoreError: the output refuses.
        """
        start, shard = time.monotonic(), assignment.shard
        self.pulse.begin_shard(shard.shard_id)
        try:
            with self.pipeline.submit(self._tasks(assignment), one_by_one=assignment.one_by_one) as job:
                rows = job.results()
                if assignment.kind == "probe":
                    return self._outcome(None, None, start)
                with self.pulse.working("commit", [Mark(shard.shard_id)]):
                    receipt, part = self._commit(assignment, job, rows)
                kinds = Counter(row.failure.error_type for row in rows if row.failure is not None)
            self._shards_done += 1
            return self._outcome(receipt, part, start, dict(kinds))
        finally:
            self.pulse.end_shard(shard.shard_id)

    def heartbeat(self) -> Heartbeat | None:
        """What the threads are busy with; callable from any other thread."""
        return self.pulse.read()

    def close(self) -> None:
        """End the threads and remove the pulse."""
        self.pipeline.close()
        self.pulse.close()

    # --- the legs

    def _stages(self) -> Sequence[Stage | BatchStage]:
        job, memory = self.job, self.job.memory_bytes
        return [
            Stage("fetch", self._fetch, _fetched_bytes, memory // 4, threads=job.fetch_threads, expect=_expected_bytes),
            Stage("decode", self._decode, _item_bytes, memory // 2, threads=job.decode_threads, many=True),
            BatchStage("infer", self._infer, _item_bytes, memory // 8, bucket_of=_bucket_of, limit_of=self._limits),
            Stage("encode", self._encode, _row_bytes, memory // 8, threads=job.encode_threads),
        ]

    def _tasks(self, assignment: Assignment) -> Iterator[_Task]:
        for index, entry in assignment.entries():
            alone = tuple(q for q in assignment.quarantined if q.entry == index)
            ends = [q.frame for q in alone if q.rest] + ([] if assignment.end_frame is None else [assignment.end_frame])
            if entry.media == "video" and ends:
                end = min(ends) if entry.end_frame is None else min(*ends, entry.end_frame)
                entry = replace(entry, end_frame=end)
            yield _Task(assignment, index, entry, alone)

    def _fetch(self, task: _Task) -> _Task:
        if _is_untouchable(task):
            return task
        with self.pulse.working("fetch", [Mark(task.assignment.shard.shard_id, task.index)]):
            return replace(task, fetched=fetch_entry(task.entry, self._reader))

    def _decode(self, task: _Task) -> Iterator[_Item]:
        alone = {q.frame: q for q in task.left_alone}
        if not _is_untouchable(task):
            frames, next_frame = self._frames(task), task.entry.first_frame
            while True:
                with self.pulse.working("decode", [Mark(task.assignment.shard.shard_id, task.index, next_frame)]):
                    item = next(frames, None)
                    if item is not None:
                        item = self._prepare(item, alone.pop(item.frame.frame, None))
                if item is None:
                    break
                next_frame = item.frame.frame + self.job.decode.stride
                yield item
        for verdict in alone.values():  # those that no frame came for: the entry was not touched, or its decoder dies
            yield _left_alone(task, Frame(verdict.frame, None, None, None), verdict)

    def _frames(self, task: _Task) -> Iterator[_Item]:
        assert task.fetched is not None
        for frame in decode_fetched(task.entry, task.fetched, self.job.decode):
            yield _Item(task, frame)

    def _prepare(self, item: _Item, verdict: Quarantine | None) -> _Item:
        """Pixels as the model wants them; the source image is let go."""
        image, slim = item.frame.image_rgb_hwc_u8, replace(item.frame, image_rgb_hwc_u8=None)
        if verdict is not None:
            return _left_alone(item.task, slim, verdict)
        if item.frame.failure is not None or image is None:
            return replace(item, frame=slim).failed(
                item.frame.failure or ItemFailure("decode", "NoPixels", "no pixels")
            )
        try:
            return replace(item, frame=slim, prepared=self._predictor.prepare(image))
        except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
            return replace(item, frame=slim).failed(failure_of("infer", error))

    def _infer(self, items: list[_Item]) -> list[_Item]:
        with self.pulse.working("infer", [item.mark for item in items]):
            prepared = [item.prepared for item in items]
            raws = forward(self._predictor.infer, prepared, _bucket_of(items[0]), self._limits)
        return [
            item.failed(failure_of("infer", raw))
            if isinstance(raw, Exception)
            else replace(item, prepared=None, raw=raw)
            for item, raw in zip(items, raws, strict=True)
        ]

    def _encode(self, item: _Item) -> Row:
        row = None
        with self.pulse.working("encode", [item.mark]):
            if item.failure is None:
                try:
                    row = ok_row(item.task.entry, item.frame, self._predictor.finish(item.raw))
                except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
                    item = item.failed(failure_of("encode", error))
            if row is None:
                assert item.failure is not None
                row = failed_row(item.task.entry, item.frame, item.failure, item.status)
        if item.task.assignment.kind == "process":
            if item.status != "quarantined":
                self._streak.note(item.task.entry.uri, item.failure)
            self.pulse.count(1)
        return row

    # --- the end of a shard

    def _commit(self, assignment: Assignment, job: Job, rows: list[Row]) -> tuple[Receipt, bytes | None]:
        start, shard, version = time.monotonic(), assignment.shard, self.job.version
        seconds, counts = dict(job.stage_seconds), count_items(rows)
        part = encode_part(
            rows,
            version=version,
            plan=shard.plan,
            shard_id=shard.shard_id,
            attempt_id=assignment.attempt_id,
            run_id=self.job.run_id,
            stage_seconds=seconds,
            class_names=self._class_names,
        )
        job.keep(len(part))
        seconds["parquet"] = time.monotonic() - start
        bad = [row for row in rows if row.failure is not None]
        receipt = Receipt(
            shard_id=shard.shard_id,
            attempt_id=assignment.attempt_id,
            outcome="committed",
            rows=counts["rows"],
            ok=counts["ok"],
            failed=counts["failed"],
            quarantined=counts["quarantined"],
            bytes_in=sum(_size_of(entry) for entry in shard.entries),
            bytes_out=len(part),
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


def load_predictor(job: JobSpec) -> Any:
    """The job's model on its device, by ``modelkit.load``; weights given as a URI are fetched once per machine."""
    import modelkit

    options = dict(job.model_options)
    if isinstance(options.get("weights"), str):
        options["weights"] = local_model(options["weights"])
    return modelkit.load(local_model(job.model), device=job.device, **options)


def failure_of(stage: Any, error: Exception) -> ItemFailure:
    """An exception as the failure of one item: one line, without secrets."""
    words = " ".join(redact(str(error)).split())[:500]
    return ItemFailure(stage, type(error).__name__, words or type(error).__name__)


def _own_the_process(job: JobSpec) -> None:
    """One thread for torch on a CPU (workers are there to use the other cores), and no GPU that was not given."""
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset without GPUs: then a worker would see them all
        import torch

        torch.set_num_threads(1)


def _check_digest(predictor: Any, job: JobSpec) -> None:
    digest = getattr(getattr(predictor, "weights", None), "digest", None)
    if digest is not None and digest != job.version.model_digest:
        raise VersionMismatch(
            f"{job.model} has the digest {digest[:12]} here, but the job is for {job.version.model_digest[:12]}",
            hint="Every machine must see the same weights: name them by URI, or copy the file to all of them.",
        )


def _is_untouchable(task: _Task) -> bool:
    """Whether nothing of an entry may be read: it is an image in quarantine, or its first frame is out of reach."""
    return any(q.frame <= task.entry.first_frame and (q.rest or task.entry.media == "image") for q in task.left_alone)


def _left_alone(task: _Task, frame: Frame, verdict: Quarantine) -> _Item:
    return _Item(task, frame).failed(verdict.failure, "quarantined")


def _size_of(entry: Entry) -> int:
    return entry.size_bytes if entry.length is None else entry.length


def _row_bytes(row: Row) -> int:
    return row.nbytes


def _expected_bytes(task: _Task) -> int:
    size = _size_of(task.entry)
    return size if task.entry.media == "image" else min(size, _READER_BYTES)


def _fetched_bytes(task: _Task) -> int:
    fetched = task.fetched
    if isinstance(fetched, bytes):
        return len(fetched)
    return 0 if fetched is None or isinstance(fetched, ItemFailure) else _expected_bytes(task)


def _bucket_of(item: _Item) -> Hashable | None:
    return None if item.prepared is None else item.prepared.bucket


def _item_bytes(item: _Item) -> int:
    if item.prepared is not None:
        return int(item.prepared.nbytes)
    return held_bytes(item.raw)


def held_bytes(value: Any) -> int:
    """Bytes of the arrays and tensors in a result, one level of fields deep."""
    if value is None:
        return 0
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if is_dataclass(value):
        parts: Sequence[Any] = [getattr(value, name) for name in value.__dataclass_fields__]
    elif isinstance(value, dict):
        parts = list(value.values())
    else:
        parts = value if isinstance(value, list | tuple) else ()
    return sum(size for part in parts if isinstance(size := getattr(part, "nbytes", None), int))
