"""How long will a plan take? A few of its items are carried out here, from fetching to rows, and thrown away."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tasks.engine.calibrate import items_of
from tasks.engine.job import Assignment, JobSpec
from tasks.engine.worker import Worker
from tasks.records import Entry, Shard

_FRAMES = 16  # of a video, at most
_ENOUGH_S = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What some items took in one worker.

    Args:
        items: how many were tried, failed images too.
        seconds_per_item: of wall time, the model being loaded and warm.
        start_s: seconds that loading the model took.
    """

    items: int
    seconds_per_item: float
    start_s: float


def measure(job: JobSpec, shard: Shard, *, max_items: int = 32) -> Measured | None:
    """Try some items of a shard; None where it has none that can be looked at.

    The first goes ahead and is not counted: it pays for what is prepared once. After 10 s no further group is begun.
    """
    pieces = list(_pieces(shard.entries, job.decode.stride, max_items))
    if not pieces:
        return None
    worker = Worker(replace(job, max_consecutive_failures=max_items + 1), own_process=False)
    try:
        _try(worker, shard, pieces[:1])
        timed = pieces[1:] or pieces
        began, items = time.monotonic(), 0
        for group in (timed[:4], timed[4:]):
            if group and time.monotonic() - began < _ENOUGH_S:
                items += _try(worker, shard, group)
        return Measured(items, (time.monotonic() - began) / items, worker.start_s) if items else None
    finally:
        worker.close()


def _pieces(entries: Iterable[Entry], stride: int, max_items: int) -> Iterator[Entry]:
    """Images, and the beginnings of videos, as many as give about so many items."""
    left = max_items
    for entry in entries:
        if left <= 0:
            return
        if entry.media == "video":
            end = entry.first_frame + stride * min(_FRAMES, left)
            entry = replace(entry, end_frame=end if entry.end_frame is None else min(end, entry.end_frame))
        left -= max(1, items_of(Shard("", 0, 0, (entry,), 0.0), stride))
        yield entry


def _try(worker: Worker, shard: Shard, entries: list[Entry]) -> int:
    """Carry entries out without committing anything; the number of their items, which of videos only decoding tells."""
    tried = replace(shard, entries=tuple(entries), continues=None)
    return worker.process(Assignment(tried, attempt_id="estimate", kind="probe")).tried
