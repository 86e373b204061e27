"""What travels through a worker's pipeline, and what is done to it: an entry becomes frames, and these become rows."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from infra.machine import return_free_memory
from tasks.engine.batches import BatchLimits, Group, forward
from tasks.engine.byte_budget import LARGE_BYTES, Shares
from tasks.engine.circuit import FailureStreak
from tasks.engine.clips import Clip
from tasks.engine.file_writer import FileWriter
from tasks.engine.heartbeat import HeartbeatWriter, Mark
from tasks.engine.job import Assignment, JobSpec, Quarantine
from tasks.engine.stage import BatchStage, Stage
from tasks.ingest.planned_rows import Hole, IncompleteShardError, RowFacts, holes
from tasks.media.decoding import EntryReader, Fetched, Frame, decode_fetched, fetch_entry
from tasks.media.images import decoding_bytes
from tasks.media.video_gaps import VideoGap
from tasks.output.encoding import Row, failed_row, ok_row
from tasks.records import Entry, ItemFailure, Shard, Status

_READER_BYTES = 8 << 20  # what an open video holds in blocks, about
_ATTEMPTS_FOR_ALL_ROWS = 3
_GROUP_BATCHES = 4  # an image finds company among so many batches' worth of neighbours: sizes are mixed


@dataclass(frozen=True, slots=True)
class Task:
    """An entry on its way to decoding."""

    assignment: Assignment
    index: int
    entry: Entry
    left_alone: tuple[Quarantine, ...]
    fetched: Fetched | None = None
    decoding_bytes: int | None = None  # that decoding an image takes, its pixels and the decoder's own
    clip: Clip | None = None  # set where frames must go through the model in order
    rest: tuple[Task, ...] = ()  # the pieces of the same clip that follow in this shard


@dataclass(frozen=True, slots=True)
class Item:
    """A frame on its way to a row: prepared pixels, then a raw result, or the failure that stands for them."""

    task: Task
    frame: Frame
    prepared: Any = None
    raw: Any = None
    failure: ItemFailure | None = None
    status: Status = "ok"

    @property
    def mark(self) -> Mark:
        return Mark(self.task.assignment.shard.shard_id, self.task.index, self.frame.frame)

    def failed(self, failure: ItemFailure, status: Status = "failed") -> Item:
        return replace(self, prepared=None, raw=None, failure=failure, status=status)


def completed(assignment: Assignment, rows: Sequence[Row], stride: int, ends: Mapping[int, int]) -> list[Row]:
    """The rows of a shard, if those of all its items are there: what is committed is never looked at again.

    An attempt that lacks some fails. The third one says so in failed rows instead: then it is the data, for which
    nobody has found a reason, and it costs its own rows only.

    Args:
        ends: by entry, one past the last frame that its decoder gave. A plan leaves a video's end open.

    Raises:
        IncompleteShardError: names what is missing.
    """
    entries = assignment.shard.entries
    closed = [e if e.end_frame is not None else replace(e, end_frame=ends.get(i)) for i, e in enumerate(entries)]
    missing = missing_rows(replace(assignment.shard, entries=tuple(closed)), rows, stride)
    if missing and assignment.attempt < _ATTEMPTS_FOR_ALL_ROWS:
        raise IncompleteShardError("; ".join(str(row.failure and row.failure.error) for row in missing[:3]))
    return [*rows, *missing]


def missing_rows(shard: Shard, rows: Sequence[Row], stride: int) -> list[Row]:
    """Failed rows for what of a shard has none: one for each run of frames."""
    facts = (
        RowFacts(row.uri, row.etag, row.frame, row.failure is None, "" if row.failure is None else row.failure.error)
        for row in rows
    )
    return [_missing_row(hole) for hole in holes(shard, facts, stride)]


def _missing_row(hole: Hole) -> Row:
    last = None if hole.end is None else hole.end - 1
    gap = VideoGap(hole.first, last, None, None, "FramesMissing", "no row came of them, and no reason why")
    failure = ItemFailure("decode", gap.error_type, gap.message)
    return failed_row(hole.entry, Frame(hole.first, None, None, None), failure)


def is_untouchable(task: Task) -> bool:
    """Whether nothing of an entry may be read: it is an image in quarantine, or its first frame is out of reach."""
    return any(q.frame <= task.entry.first_frame and (q.rest or task.entry.media == "image") for q in task.left_alone)


def left_alone_item(task: Task, frame: Frame, verdict: Quarantine) -> Item:
    return Item(task, frame).failed(verdict.failure, "quarantined")


def size_of(entry: Entry) -> int:
    return entry.size_bytes if entry.length is None else entry.length


def row_bytes(row: Row) -> int:
    return row.nbytes


def expected_bytes(task: Task) -> int:
    size = size_of(task.entry)
    return size if task.entry.media == "image" else min(size, _READER_BYTES)


def fetched_bytes(task: Task) -> int:
    fetched = task.fetched
    if isinstance(fetched, bytes):
        return len(fetched)
    return 0 if fetched is None or isinstance(fetched, ItemFailure) else expected_bytes(task)


@dataclass(frozen=True, slots=True)
class Alone:
    """A bucket whose items go one by one, because each fills a batch's worth of memory."""

    bucket: Hashable


def bucket_of(item: Item, most_bytes: int) -> Hashable | None:
    """What may share a batch; frames of a clip share none, they only keep their order.

    Args:
        most_bytes: larger prepared items go alone.
    """
    if item.prepared is None:
        return None
    if item.task.clip is not None:
        return item.task.clip
    bucket: Hashable = item.prepared.bucket
    return Alone(bucket) if item.prepared.nbytes > most_bytes else bucket


def batch_limit(bucket: Hashable, wanted: int) -> int:
    """Items of a bucket that may share a batch."""
    return 1 if isinstance(bucket, Clip | Alone) else wanted


def most_bytes_in_batch(job: JobSpec) -> int:
    """Size of a prepared item up to which a whole group that waits for company fits into a worker's memory."""
    return job.memory_bytes // 2 // (_GROUP_BATCHES * job.batch_size)


def group_of(position: int, task: Task, batch_size: int) -> Group:
    """Who may share a batch with an entry: the frames of a video among themselves, images with their neighbours."""
    if task.entry.media == "video":
        return position, position + 1
    size = _GROUP_BATCHES * batch_size
    first = position // size * size
    return first, first + size


def item_bytes(item: Item) -> int:
    if item.prepared is not None:
        return int(item.prepared.nbytes)
    return held_bytes(item.raw)


def prepared_item(predictor: Any, image_rgb_hwc_u8: np.ndarray, entry: Entry, frame: Frame) -> Any:
    """By ``prepare``, or by ``prepare_item`` of a predictor that knows more of an item than its pixels."""
    prepare = getattr(predictor, "prepare_item", None)
    if prepare is None:
        return predictor.prepare(image_rgb_hwc_u8)
    return prepare(image_rgb_hwc_u8, uri=entry.uri, etag=entry.etag, frame=frame.frame)


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


class ItemStages:
    """What is done to one item after the other, by many threads: fetch, decode, infer, encode, store its files if any.

    Whatever goes wrong with an item becomes its row; what is raised here is nobody's fault but the worker's.

    Attributes:
        limits: of batches, as far as memory has told.
        model_in_use: held by who runs the model.
        ends: by attempt and entry, one past the last frame that its decoder gave.
    """

    def __init__(
        self, job: JobSpec, predictor: Any, reader: EntryReader, files: FileWriter, beats: HeartbeatWriter
    ) -> None:
        self._job, self._predictor, self._reader, self._files, self._beats = job, predictor, reader, files, beats
        self._memory = Shares(job.memory_bytes, job.memory_is_limit)
        self._streak = FailureStreak(job.max_consecutive_failures)
        self.limits, self.model_in_use = BatchLimits(job.batch_size), threading.Lock()
        self.ends: dict[str, dict[int, int]] = defaultdict(dict)

    def in_order(self) -> list[Stage | BatchStage]:
        """What the pipeline is made of."""
        job, small = self._job, self._memory.small_bytes
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
        if not self._files.are_wanted:
            return [Stage("encode", self._encode, row_bytes, budget_bytes, threads=job.encode_threads)]
        return [
            Stage("encode", self._encode_item, item_bytes, budget_bytes, threads=job.encode_threads),
            Stage("store", self._store, row_bytes, budget_bytes, threads=job.fetch_threads),
        ]

    def _fetch(self, task: Task) -> Task:
        if is_untouchable(task):
            return task
        with self._beats.working("fetch", [Mark(task.assignment.shard.shard_id, task.index)]):
            fetched = fetch_entry(task.entry, self._reader, self._job.decode)
        if not isinstance(fetched, bytes):
            return replace(task, fetched=fetched)
        wanted = decoding_bytes(fetched, self._job.decode)
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
                mark = Mark(task.assignment.shard.shard_id, task.index, next_frame)
                with self._beats.working("decode", [mark], task.decoding_bytes or 0):
                    item = next(frames, None)
                    if item is not None:
                        item = self._prepare(item, alone.pop(item.frame.frame, None))
                if item is None:
                    break
                if (task.decoding_bytes or 0) > LARGE_BYTES:
                    return_free_memory()
                next_frame = item.frame.frame + self._job.decode.stride
                self.ends[task.assignment.attempt_id][task.index] = item.frame.frame + 1
                yield item
        for verdict in alone.values():  # those that no frame came for: the entry was not touched, or its decoder dies
            yield left_alone_item(task, Frame(verdict.frame, None, None, None), verdict)

    def _frames(self, task: Task) -> Iterator[Item]:
        assert task.fetched is not None
        slim = replace(task, fetched=None)  # what is on its way holds no file any more
        # No loop variable: it would keep the pixels of an image until somebody asks for the one after it.
        return map(lambda frame: Item(slim, frame), decode_fetched(task.entry, task.fetched, self._job.decode))

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
            return replace(item, frame=slim, prepared=prepared_item(self._predictor, image, item.task.entry, slim))
        except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
            return replace(item, frame=slim).failed(ItemFailure.of("infer", error))

    def _infer(self, items: list[Item]) -> list[Item]:
        clip, prepared = items[0].task.clip, [item.prepared for item in items]
        largest = max(item_bytes(item) for item in items)
        with self._beats.working("infer", [item.mark for item in items], largest), self.model_in_use:
            infer = self._predictor.infer if clip is None else lambda frames: [clip.step(self._predictor, *frames)]
            raws = forward(infer, prepared, self._bucket_of(items[0]), self.limits)
        return [
            item.failed(ItemFailure.of("infer", raw))
            if isinstance(raw, Exception)
            else replace(item, prepared=None, raw=raw)
            for item, raw in zip(items, raws, strict=True)
        ]

    def _bucket_of(self, item: Item) -> Hashable | None:
        return bucket_of(item, self._job.batch_item_bytes or most_bytes_in_batch(self._job))

    def _encode(self, item: Item) -> Row:
        return self._settled(item, self._row_of(item))

    def _encode_item(self, item: Item) -> Item:
        return replace(item, raw=self._row_of(item))

    def _row_of(self, item: Item) -> Row:
        with self._beats.working("encode", [item.mark]):
            if item.failure is None:
                try:
                    return ok_row(item.task.entry, item.frame, self._predictor.finish(item.raw))
                except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
                    item = item.failed(ItemFailure.of("encode", error))
            assert item.failure is not None
            return failed_row(item.task.entry, item.frame, item.failure, item.status)

    def _store(self, item: Item) -> Row:
        """Write the files of a row, before anything says that they exist. A store that refuses ends the shard."""
        row, assignment = item.raw, item.task.assignment
        if row.found is not None:
            with self._beats.working("store", [item.mark]):
                row = self._files.write(row, assignment)
        return self._settled(item, row)

    def _settled(self, item: Item, row: Row) -> Row:
        """The row of an item that is through; a probe's leaves no trace."""
        if item.task.assignment.kind == "process":
            if row.status != "quarantined":
                self._streak.note(row.uri, row.failure)
            self._beats.count(1)
        return row
