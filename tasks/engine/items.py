"""What travels through a worker's pipeline: an entry on its way to decoding, then its frames on their way to rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.redaction import redact
from tasks.engine.batches import Group
from tasks.engine.clips import Clip, runs_of
from tasks.engine.heartbeat import Mark
from tasks.engine.job import Assignment, JobSpec, Quarantine
from tasks.ingest.planned_rows import Hole, RowFacts, holes
from tasks.media.decoding import Fetched, Frame
from tasks.media.video_gaps import VideoGap
from tasks.output.encoding import Row, failed_row
from tasks.records import Entry, ItemFailure, Shard, Status

if TYPE_CHECKING:
    from modelkit.video import VideoState

_READER_BYTES = 8 << 20  # what an open video holds in blocks, about
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


def failure_of(stage: Any, error: Exception) -> ItemFailure:
    """An exception as the failure of one item: one line, without secrets."""
    words = " ".join(redact(str(error)).split())[:500]
    return ItemFailure(stage, type(error).__name__, words or type(error).__name__)


def without_misfits(rows: Sequence[Row], columns: Callable[[list[Any]], object]) -> list[Row]:
    """The rows, of which those are failed now that make no columns: a broken result costs one row, never its shard.

    Args:
        columns: found by row -> columns, or an error.
    """

    def checked(row: Row) -> Row:
        if row.found is None:
            return row
        try:
            columns([row.found])
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a result becomes the row of its item
            return replace(row, found=None, status="failed", failure=failure_of("encode", error))
        return row

    return [checked(row) for row in rows]


def missing_rows(shard: Shard, rows: Sequence[Row], stride: int) -> list[Row]:
    """Failed rows for what of a shard has none: one for each run of frames."""
    facts = (
        RowFacts(row.uri, row.etag, row.frame, row.failure is None, "" if row.failure is None else row.failure.error)
        for row in rows
    )
    return [_missing_row(hole) for hole in holes(shard, facts, stride)]


def _missing_row(hole: Hole) -> Row:
    last = None if hole.end is None else hole.end - 1
    gap = VideoGap(hole.first, last, None, None, "FramesMissing", "they were planned, and the decoder never gave them")
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
