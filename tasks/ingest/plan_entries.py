"""From chosen inventory lines to plan entries: long videos cut, everything weighed, sorted by uri, each uri once."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import VisionmillError
from infra.store import Store, open_store, split_uri
from tasks.ingest.sharding import ENTRY_SCHEMA
from tasks.media.video_index import READ_BYTES, Piece, SliceReader, cut_video
from tasks.output.entries import BATCH_ROWS

VIDEO_THREADS = 8

_COLUMNS = ", ".join(f'"{name}"' for name in ENTRY_SCHEMA.names)
# Of a uri that is listed twice the last member of its tar wins, as when a tar is unpacked. The order is bytewise,
# without a collation, so that it is the same on every machine.
_SORTED = f"""
    SELECT {_COLUMNS} FROM (
        SELECT uri, etag, size_bytes, media, container, "offset", length, 0::BIGINT AS first_frame,
               NULL::BIGINT AS end_frame, NULL::BIGINT AS first_pts, problem, greatest(size_bytes, ?)::BIGINT AS work
        FROM read_parquet(?) WHERE media = 'image' OR problem IS NOT NULL
        UNION ALL
        SELECT {_COLUMNS} FROM read_parquet(?)
    )
    ORDER BY uri, container NULLS FIRST, "offset" DESC, etag, first_frame
"""
_VIDEOS = """
    SELECT uri, etag, size_bytes, media, container, "offset", length FROM read_parquet(?)
    WHERE media = 'video' AND problem IS NULL
"""


def entry_batches(
    connection: duckdb.DuckDBPyConnection,
    chosen: Path,
    scratch: Path,
    image_work: int,
    shard_work: int,
    video_frames: int,
    piece_frames: int,
) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The total work, and the entries (:data:`tasks.ingest.sharding.ENTRY_SCHEMA`) sorted by (uri, first_frame).

    Args:
        connection: a workbench.
        chosen: Parquet of inventory lines.
        scratch: local folder for intermediate files; must outlive the returned iterator.
        image_work: what an image weighs at least.
        shard_work: what a full shard weighs, and so what ``video_frames`` frames of video weigh.
        piece_frames: about so many frames are in a piece of a video.
    """
    videos, ordered = scratch / "videos.parquet", scratch / "ordered.parquet"
    reader = connection.sql(_VIDEOS, params=[str(chosen)]).to_arrow_reader(1024)
    _write_videos(videos, cast(pa.RecordBatchReader, reader), shard_work / video_frames, piece_frames)
    reader = connection.sql(_SORTED, params=[image_work, str(chosen), str(videos)]).to_arrow_reader(BATCH_ROWS)
    total_work = 0
    with pq.ParquetWriter(ordered, ENTRY_SCHEMA, compression="lz4") as writer:
        for batch in _without_repeats(cast(pa.RecordBatchReader, reader)):
            total_work += pc.sum(batch["work"]).as_py() or 0
            writer.write_batch(batch)
    return total_work, pq.ParquetFile(ordered).iter_batches(batch_size=BATCH_ROWS)


def _without_repeats(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Of lines with the same uri those of the first object only (all its pieces, when it is a video)."""
    carried: _Seen | None = None
    for raw in batches:
        batch = raw.cast(ENTRY_SCHEMA)
        if not batch.num_rows:
            continue
        uris = batch["uri"]
        repeats = np.zeros(batch.num_rows, bool)
        repeats[1:] = pc.equal(uris[1:], uris[:-1]).to_numpy(zero_copy_only=False)
        repeats[0] = carried is not None and uris[0].as_py() == carried.uri
        run_starts = np.maximum.accumulate(np.where(repeats, 0, np.arange(batch.num_rows)))
        keep = np.ones(batch.num_rows, bool)
        before = carried if repeats[0] else None
        for row in np.flatnonzero(repeats).tolist():  # few: pieces of long videos, and true repeats
            first = before if before is not None and run_starts[row] == 0 else _seen(batch, int(run_starts[row]))
            previous = before if before is not None and row == 0 else _seen(batch, row - 1)
            this = _seen(batch, row)
            keep[row] = this.identity == first.identity and this.first_frame != previous.first_frame
        last = _seen(batch, batch.num_rows - 1)
        start = int(run_starts[-1])
        first = before if before is not None and start == 0 else _seen(batch, start)
        carried = _Seen(last.uri, first.identity, last.first_frame)
        yield batch.filter(pa.array(keep))


class _Seen(NamedTuple):
    uri: str
    identity: tuple[str, str | None, int | None]  # which object goes by that uri: etag, container, offset
    first_frame: int


def _seen(batch: pa.RecordBatch, row: int) -> _Seen:
    uri, etag, container, offset, frame = (
        batch[name][row].as_py() for name in ("uri", "etag", "container", "offset", "first_frame")
    )
    return _Seen(uri, (etag, container, offset), frame)


def _write_videos(path: Path, lines: pa.RecordBatchReader, frame_work: float, piece_frames: int) -> None:
    """Entries for all videos, cut where they are long; a few videos are looked at at a time."""
    with (
        pq.ParquetWriter(path, ENTRY_SCHEMA, compression="lz4") as writer,
        ThreadPoolExecutor(VIDEO_THREADS, thread_name_prefix="video-index") as pool,
    ):
        stores = lru_cache(maxsize=64)(open_store)
        pending: deque[tuple[dict[str, Any], Future[list[Piece]]]] = deque()
        for batch in lines:
            for line in batch.to_pylist():
                pending.append((line, pool.submit(_cut, line, stores, piece_frames)))
                if len(pending) >= 2 * VIDEO_THREADS:
                    writer.write_batch(_entries(*pending.popleft(), frame_work))
        while pending:
            writer.write_batch(_entries(*pending.popleft(), frame_work))


def _entries(line: dict[str, Any], cut: Future[list[Piece]], frame_work: float) -> pa.RecordBatch:
    entries = [
        {
            **line,
            "first_frame": piece.first_frame,
            "end_frame": piece.end_frame,
            "first_pts": piece.first_pts,
            "work": max(round(piece.num_frames * frame_work) if piece.num_frames else line["size_bytes"], 1),
        }
        for piece in cut.result()
    ]
    return pa.RecordBatch.from_pylist(entries, schema=ENTRY_SCHEMA)


def _cut(line: dict[str, Any], stores: Callable[[str], Store], piece_frames: int) -> list[Piece]:
    """The pieces of one video; one that cannot be read stays whole, and its worker says why."""
    container, offset, length = line["container"], line["offset"], line["length"]
    try:
        root, key = split_uri(container or line["uri"])
        with stores(root).open(key, block_bytes=READ_BYTES) as file:
            if container is None or offset is None:
                return cut_video(file, piece_frames)
            return cut_video(cast(BinaryIO, io.BufferedReader(SliceReader(file, offset, length))), piece_frames)
    except (VisionmillError, OSError):
        return [Piece(0, None, None, 0)]
