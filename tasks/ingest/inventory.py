"""The inventory: a local Parquet listing of everything a source names, written as it streams by."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.telling import tell
from tasks.ingest.sources import read_source
from tasks.ingest.spill import local_disk
from tasks.output.entries import INVENTORY_SCHEMA, Skipped

FILE_NAME = "inventory.parquet"
ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True, slots=True)
class Inventory:
    """A listing on disk and what it holds; the columns are :data:`tasks.output.entries.INVENTORY_SCHEMA`."""

    path: Path
    source: str
    num_objects: int  # rows: images, videos and problems
    total_bytes: int  # as far as sizes are known
    num_images: int
    num_videos: int
    num_problems: int  # rows that are listed but cannot be read: broken tars, missing shards, names that are no text
    skipped: dict[str, int]  # reason -> how many objects were left out for it
    skipped_examples: dict[str, tuple[str, ...]]  # reason -> the first few names


def take_inventory(
    source: str, *, folder: Path, images_root: str | None = None, follow_links: bool = True
) -> Inventory:
    """List ``source`` into ``folder/inventory.parquet``, in bounded memory.

    Args:
        source: what to list, see :mod:`tasks.ingest.sources`.
        folder: local work folder; created if need be. An older inventory in it is replaced once the new one is whole.
        images_root: where the images of a COCO file lie; default: its own folder.
        follow_links: take links that lead out of a local folder, too.

    Raises:
        DatasetError: the source does not exist, is no source, or holds nothing to process.
        StoreError: bucket missing, access denied, storage unavailable, no space left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    scratch = folder / f".{FILE_NAME}.{os.getpid()}"
    skipped = Skipped()
    try:
        with local_disk(folder):
            batches = read_source(
                source, folder=folder, skipped=skipped, images_root=images_root, follow_links=follow_links
            )
            return _write(source, batches, skipped, path, scratch)
    finally:
        scratch.unlink(missing_ok=True)


def _write(source: str, batches: Iterable[pa.RecordBatch], skipped: Skipped, path: Path, scratch: Path) -> Inventory:
    totals = {"num_objects": 0, "total_bytes": 0, "num_images": 0, "num_videos": 0, "num_problems": 0}
    writer = pq.ParquetWriter(
        scratch,
        INVENTORY_SCHEMA,
        compression="zstd",
        use_dictionary=["media", "container", "problem"],
        write_statistics=["size_bytes", "media"],
    )
    try:
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            _count(totals, batch)
            tell(f"listing {source}", totals["num_objects"], unit="objects")
            waiting.append(batch)
            if sum(piece.num_rows for piece in waiting) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=2 * ROW_GROUP_ROWS)
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=2 * ROW_GROUP_ROWS)
        if not totals["num_objects"]:
            raise _empty(source, skipped)
    finally:
        writer.close()
    os.replace(scratch, path)
    examples = {reason: tuple(names) for reason, names in skipped.examples.items()}
    return Inventory(path=path, source=source, **totals, skipped=dict(skipped.counts), skipped_examples=examples)


def _count(totals: dict[str, int], batch: pa.RecordBatch) -> None:
    problems = batch.num_rows - batch["problem"].null_count
    videos = pc.sum(pc.and_(pc.equal(batch["media"], "video"), pc.is_null(batch["problem"]))).as_py() or 0
    totals["num_objects"] += batch.num_rows
    totals["total_bytes"] += pc.sum(batch["size_bytes"]).as_py() or 0
    totals["num_videos"] += videos
    totals["num_images"] += batch.num_rows - problems - videos
    totals["num_problems"] += problems


def _empty(source: str, skipped: Skipped) -> DatasetError:
    if not skipped.counts:
        return DatasetError(f"the source {source!r} holds nothing", hint="Check the path or prefix.")
    reasons = sorted(skipped.counts.items(), key=lambda pair: -pair[1])
    shown = "; ".join(
        f"{count} x {reason} (e.g. {', '.join(skipped.examples[reason][:1])})" for reason, count in reasons[:5]
    )
    return DatasetError(
        f"the source {source!r} holds no image, video or tar; left out: {shown}",
        hint="Objects without a known ending can be given as a listing with a uri column.",
    )
