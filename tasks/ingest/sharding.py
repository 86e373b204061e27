"""Divide a plan's entries into shards of even work and write the plan's Parquet, in one streaming pass.

Entries come sorted by uri and are laid end to end on a line of work; a new shard begins whenever an entry starts beyond
the next multiple of the target. So a shard's work differs from the target by less than one entry, and neighbours in the
listing (frames of a video, members of a tar) stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 32_768  # at least; a row group ends where a shard ends
SHARD_ID_LENGTH = 16

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("container", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("first_frame", pa.int64(), nullable=False),
        pa.field("end_frame", pa.int64()),
        pa.field("first_pts", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("work", pa.int64(), nullable=False),  # bytes-equivalents
    ]
)
PLAN_SCHEMA = pa.schema(
    [
        pa.field("plan", pa.int32(), nullable=False),
        pa.field("shard_index", pa.int32(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),  # of the entry, in the whole plan
        *ENTRY_SCHEMA,
    ]
)


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """What went into a plan; ``total_bytes`` counts an object once, however many pieces it is cut into."""

    num_shards: int
    num_entries: int
    num_objects: int
    total_bytes: int
    total_work: int


@dataclass(slots=True)
class _Progress:
    work: int = 0  # of the entries read so far
    shards: int = 0
    entries: int = 0
    last_uri: str | None = None
    objects: int = 0
    object_bytes: int = 0


def target_work(total_work: int, shard_work: int, least_shards: int = 1) -> int:
    """The even share of work when as few shards as possible (but as wanted) hold at most about ``shard_work`` each."""
    shards = max(-(-total_work // shard_work), least_shards, 1)
    return max(-(-total_work // shards), 1)


def write_plan(
    path: Path, entries: Iterable[pa.RecordBatch], *, number: int, fingerprint: str, target: int
) -> tuple[pq.ParquetWriter, PlanTotals]:
    """Write all entries; the caller adds the footer's metadata to the writer and closes it.

    Args:
        path: local file to write.
        entries: batches of :data:`ENTRY_SCHEMA`, sorted by (uri, first_frame), each entry once.
        number: of the plan; it is part of every shard's name, as is the version's fingerprint.
        target: work per shard, see :func:`target_work`.
    """
    writer = pq.ParquetWriter(
        path,
        PLAN_SCHEMA,
        compression="zstd",
        use_dictionary=["plan", "shard_index", "shard_id", "media", "container", "problem"],
        write_statistics=["shard_index", "position"],
    )
    progress = _Progress()
    try:
        for group in _whole_shards(entries, target):
            writer.write_table(_named(group, number, fingerprint, progress), row_group_size=max(group.num_rows, 1))
    except BaseException:
        writer.close()
        raise
    return writer, PlanTotals(progress.shards, progress.entries, progress.objects, progress.object_bytes, progress.work)


def _whole_shards(entries: Iterable[pa.RecordBatch], target: int) -> Iterator[pa.Table]:
    """Tables of whole shards, at least :data:`ROW_GROUP_ROWS` rows each but for the last, with a column ``step``."""
    before = 0
    waiting: list[pa.Table] = []
    rows = 0
    for batch in entries:
        work = batch["work"].to_numpy()
        starts = before + np.cumsum(work) - work
        before += int(work.sum())
        waiting.append(pa.Table.from_batches([batch]).append_column("step", pa.array(starts // target)))
        rows += batch.num_rows
        if rows < ROW_GROUP_ROWS:
            continue
        table = pa.concat_tables(waiting)
        steps = table["step"].to_numpy()
        cut = int(np.searchsorted(steps, steps[-1]))  # the last shard may go on in the next batch
        if cut:
            yield table.slice(0, cut)
        waiting = [table.slice(cut)]
        rows = table.num_rows - cut
    if rows:
        yield pa.concat_tables(waiting)


def _named(group: pa.Table, number: int, fingerprint: str, progress: _Progress) -> pa.Table:
    """The rows of :data:`PLAN_SCHEMA` for whole shards; moves ``progress`` on."""
    steps = group["step"].to_numpy()
    starts = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
    sizes = np.diff(starts, append=len(steps))
    lines = zip(*(group[name].to_pylist() for name in ENTRY_SCHEMA.names), strict=True)
    ids = [_shard_id(number, fingerprint, [next(lines) for _ in range(size)]) for size in sizes.tolist()]
    of_row = np.repeat(np.arange(len(starts)), sizes)
    named = pa.table(
        {
            "plan": pa.array(np.full(len(steps), number, np.int32)),
            "shard_index": pa.array((progress.shards + of_row).astype(np.int32)),
            "shard_id": pa.array(ids, pa.string()).take(pa.array(of_row)),
            "position": pa.array(np.arange(len(steps)) + progress.entries),
            **{name: group[name] for name in ENTRY_SCHEMA.names},
        },
        schema=PLAN_SCHEMA,
    )
    _advance(progress, group, shards=len(starts))
    return named


def _advance(progress: _Progress, group: pa.Table, *, shards: int) -> None:
    uris = group["uri"].combine_chunks()
    fresh = np.ones(len(uris), bool)
    if len(uris) > 1:
        fresh[1:] = pa.compute.not_equal(uris[1:], uris[:-1]).to_numpy(zero_copy_only=False)
    fresh[0] = uris[0].as_py() != progress.last_uri
    progress.objects += int(fresh.sum())
    progress.object_bytes += int(group["size_bytes"].to_numpy()[fresh].sum())
    progress.work += int(group["work"].to_numpy().sum())
    progress.last_uri = uris[-1].as_py()
    progress.shards += shards
    progress.entries += len(uris)


def _shard_id(number: int, fingerprint: str, lines: list[tuple[object, ...]]) -> str:
    """16 hex digits over plan number, version and all that the shard's entries say."""
    content = json.dumps([number, fingerprint, lines], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:SHARD_ID_LENGTH]
