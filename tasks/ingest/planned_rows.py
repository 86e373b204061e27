"""The rows of a shard against what was planned: whose are missing. Asked before a commit, and again by ``verify``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from tasks.media.video_gaps import last_missing
from tasks.records import Entry, Shard, Version


class RowFacts(NamedTuple):
    """What must be known of a row; ``error`` is that of a failed one."""

    uri: str
    etag: str
    frame: int
    is_ok: bool
    error: str


@dataclass(frozen=True, slots=True)
class Hole:
    """Frames of an entry that have no row and no reason: from ``first`` on, before ``end`` (None: nobody knows)."""

    entry: Entry
    first: int
    end: int | None
    words: str


class IncompleteShardError(ValueError):
    """Raised where a shard's rows are not those of all its items, so that it cannot be committed."""


def stride_of(version: Version) -> int:
    """Every how many-th frame a version has."""
    stride = version.parameters.get("frame_stride", 1)
    return stride if isinstance(stride, int) else 1


def holes(shard: Shard, rows: Iterable[RowFacts], stride: int) -> Iterator[Hole]:
    """What of a shard has no row."""
    by_uri = rows_by_uri(rows)
    for uri, group in groupby(shard.entries, key=lambda entry: entry.uri):
        for entry in group:
            yield from entry_holes(entry, rows_of(entry, by_uri.get(uri, ())), stride)


def rows_by_uri(rows: Iterable[RowFacts]) -> Mapping[str, Sequence[RowFacts]]:
    """The rows of each uri, by frame."""
    ordered = sorted(rows, key=lambda row: (row.uri, row.frame))
    return {uri: list(group) for uri, group in groupby(ordered, key=lambda row: row.uri)}


def rows_of(entry: Entry, rows: Sequence[RowFacts]) -> list[RowFacts]:
    """Of a uri's rows those of one entry."""
    end = float("inf") if entry.end_frame is None else entry.end_frame
    return [row for row in rows if entry.first_frame <= row.frame < end]


def entry_holes(entry: Entry, rows: Sequence[RowFacts], stride: int) -> Iterator[Hole]:
    """Frames come without a gap from the first wanted one to the end, or to the row that says why not.

    A failed row may stand for several frames and names the last of them.
    """
    if entry.media == "image":
        if not rows:
            yield Hole(entry, 0, 1, f"{entry.uri!r} must have one row, has 0")
        return
    where = f"{entry.uri!r} from frame {entry.first_frame}"
    expected = -(-entry.first_frame // stride) * stride
    if entry.end_frame is not None and expected >= entry.end_frame:
        return  # the stride leaves nothing of this piece
    if not rows:
        yield Hole(entry, expected, entry.end_frame, f"{where}: no row")
        return
    gap_end = None
    for row in rows:
        if row.frame > expected or (row.is_ok and row.frame != expected):
            words = f"{where}: frame {expected} is missing before frame {row.frame}"
            yield Hole(entry, expected, row.frame, words)
        gap_end = None if row.is_ok else last_missing(row.error)
        expected = (row.frame if gap_end is None else gap_end) // stride * stride + stride
    is_explained = not rows[-1].is_ok and gap_end is None
    if entry.end_frame is not None and expected < entry.end_frame and not is_explained:
        words = f"{where}: ends before frame {expected} of {entry.end_frame} without a reason"
        yield Hole(entry, expected, entry.end_frame, words)
