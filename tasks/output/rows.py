"""One row per item, also for items that failed: from what a model found to the table with the frozen schema."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from modelkit.carriers import Carrier
from tasks.output.schema import schema_named
from tasks.product import find_product
from tasks.records import Entry, ItemFailure, Status, Version

_ROW_OVERHEAD_BYTES = 500  # Python objects and short strings of a row, about


class ItemFrame(Protocol):
    """What a row takes from a decoded frame (``tasks.media.decoding.Frame``)."""

    @property
    def frame(self) -> int: ...
    @property
    def pts_s(self) -> float | None: ...
    @property
    def size_hw(self) -> tuple[int, int] | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One item on its way to Parquet. ``found`` is set exactly when ``failure`` is not."""

    uri: str
    etag: str
    media: str
    frame: int
    pts_s: float | None
    size_hw: tuple[int, int] | None
    status: Status
    notes: tuple[str, ...] = ()
    failure: ItemFailure | None = None
    found: Carrier | None = None
    processed_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    @property
    def nbytes(self) -> int:
        """Memory it holds, about: for limits on bytes in flight."""
        return _ROW_OVERHEAD_BYTES + (0 if self.found is None else self.found.nbytes)


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """What all rows of a shard share, and the names of the classes (id -> name)."""

    version: Version
    run_id: str
    shard_id: str
    class_names: Mapping[int, str]


def ok_row(entry: Entry, frame: ItemFrame, found: Carrier) -> Row:
    """The row of an item in which a model found ``found`` (perhaps nothing).

    Raises:
        ValueError: when the model's canvas is not the frame's: its pixels would mean nothing.
    """
    if frame.size_hw is not None and tuple(frame.size_hw) != tuple(found.size_hw):
        raise ValueError(f"results are for an image of {found.size_hw} (rows, columns), the item has {frame.size_hw}")
    return Row(
        uri=entry.uri,
        etag=entry.etag,
        media=entry.media,
        frame=frame.frame,
        pts_s=frame.pts_s,
        size_hw=found.size_hw,
        status="ok",
        notes=tuple(frame.notes),
        found=found,
    )


def failed_row(entry: Entry, frame: ItemFrame, failure: ItemFailure, status: Status = "failed") -> Row:
    """The row of an item without a result; ``status`` may be "quarantined"."""
    return Row(
        uri=entry.uri,
        etag=entry.etag,
        media=entry.media,
        frame=frame.frame,
        pts_s=frame.pts_s,
        size_hw=frame.size_hw,
        status=status,
        notes=tuple(frame.notes),
        failure=failure,
    )


def rows_to_table(rows: Sequence[Row], origin: RowOrigin) -> pa.Table:
    """The rows sorted by (uri, frame), in exactly the schema of the version's product."""
    ordered = sorted(rows, key=lambda row: (row.uri, row.frame))
    version = origin.version
    schema = schema_named(version.product, version.schema)
    own = find_product(version.product).columns([row.found for row in ordered], origin.class_names)
    columns = {**_common(ordered, origin), **own}
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, each.type)
        for each, column in ((each, columns[each.name]) for each in schema)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _common(rows: Sequence[Row], origin: RowOrigin) -> dict[str, Any]:
    sizes = [row.size_hw or (None, None) for row in rows]
    failures = [row.failure for row in rows]
    n = len(rows)
    return {
        "uri": [row.uri for row in rows],
        "etag": [row.etag for row in rows],
        "media": [row.media for row in rows],
        "frame": [row.frame for row in rows],
        "pts_s": [row.pts_s for row in rows],
        "width": [size[1] for size in sizes],
        "height": [size[0] for size in sizes],
        "status": [row.status for row in rows],
        "stage": [failure and failure.stage for failure in failures],
        "error_type": [failure and failure.error_type for failure in failures],
        "error": [failure and failure.error for failure in failures],
        "notes": [list(row.notes) for row in rows],
        "model": [origin.version.model] * n,
        "run_id": [origin.run_id] * n,
        "shard_id": [origin.shard_id] * n,
        "processed_at": [row.processed_at for row in rows],
    }
