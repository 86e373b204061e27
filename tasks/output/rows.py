"""One row per item, also for items that failed: from what a model found to the table with the frozen schema."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from modelkit import rle
from modelkit.carriers import Instances
from tasks.output.schema import QUALITIES, schema_named
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
    """One item on its way to Parquet. ``found`` and ``areas`` are set exactly when ``failure`` is not.

    ``areas`` are (n,) int64: mask pixels, or box areas where the model has no masks.
    """

    uri: str
    etag: str
    media: str
    frame: int
    pts_s: float | None
    size_hw: tuple[int, int] | None
    status: Status
    notes: tuple[str, ...] = ()
    failure: ItemFailure | None = None
    found: Instances | None = None
    areas: np.ndarray | None = None
    processed_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    @property
    def nbytes(self) -> int:
        """Memory it holds, about: for limits on bytes in flight."""
        if self.found is None:
            return _ROW_OVERHEAD_BYTES
        masks = sum(map(len, self.found.rles or ())) + 40 * len(self.found.rles or ())
        return _ROW_OVERHEAD_BYTES + masks + self.found.boxes_xyxy.nbytes + 32 * len(self.found)


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """What all rows of a shard share, and the names of the classes (id -> name)."""

    version: Version
    run_id: str
    shard_id: str
    class_names: Mapping[int, str]


def ok_row(entry: Entry, frame: ItemFrame, found: Instances) -> Row:
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
        areas=areas_of(found),
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


def areas_of(found: Instances) -> np.ndarray:
    """(n,) int64 pixels: of the masks, or of the boxes for models without masks."""
    if found.rles is not None:
        return np.asarray(rle.areas(found.rles), np.int64)
    sides = np.maximum(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2], 0.0)
    return np.rint(sides.prod(axis=1)).astype(np.int64)


def rows_to_table(rows: Sequence[Row], origin: RowOrigin) -> pa.Table:
    """The rows sorted by (uri, frame), in exactly the schema of the version's product."""
    ordered = sorted(rows, key=lambda row: (row.uri, row.frame))
    schema = schema_named(origin.version.schema)
    columns = _common(ordered, origin) | _segments(ordered, origin) | _qualities(ordered)
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


def _segments(rows: Sequence[Row], origin: RowOrigin) -> dict[str, pa.Array]:
    """The parallel list columns. Null where nothing could be looked for, empty where nothing was found."""
    found = [row.found for row in rows]

    def lists(of: Callable[[Instances], np.ndarray], kind: pa.DataType) -> pa.Array:
        parts = [of(one) for one in found if one is not None]
        values = np.concatenate(parts) if parts else np.zeros(0)
        return _list_array([None if one is None else len(one) for one in found], pa.array(values, kind))

    labels = lists(lambda one: one.labels, pa.int32())
    names = [origin.class_names.get(label, f"class {label}") for label in labels.values.to_pylist()]
    areas = [row.areas for row in rows if row.areas is not None]
    return {
        "labels": labels,
        "names": _list_array(_lengths(found), pa.array(names, pa.string())),
        "scores": lists(lambda one: one.scores, pa.float32()),
        "boxes_xyxy": _list_array(_lengths(found), _boxes([one.boxes_xyxy for one in found if one is not None])),
        "areas": _list_array(_lengths(found), pa.array(np.concatenate(areas) if areas else [], pa.int64())),
        "rles": _rles(found),
        "is_thing": lists(lambda one: one.is_thing.astype(bool), pa.bool_()),
        "track_ids": _track_ids(found),
    }


def _qualities(rows: Sequence[Row]) -> dict[str, pa.Array]:
    """Lists as long as labels; null where the quality was not measured."""
    columns = {}
    for name in (each.name for each in QUALITIES):
        measured = [None if row.found is None else (row.found.qualities or {}).get(name) for row in rows]
        parts = [values for values in measured if values is not None]
        values = np.concatenate(parts) if parts else np.zeros(0)
        lengths = [None if values is None else len(values) for values in measured]
        columns[name] = _list_array(lengths, pa.array(values, pa.float32()))
    return columns


def _lengths(found: Sequence[Instances | None]) -> list[int | None]:
    return [None if one is None else len(one) for one in found]


def _boxes(parts: Sequence[np.ndarray]) -> pa.Array:
    """(n, 4) arrays -> n lists of four."""
    boxes = np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 4), np.float32)
    offsets = np.arange(0, 4 * len(boxes) + 1, 4, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(boxes.reshape(-1)))


def _rles(found: Sequence[Instances | None]) -> pa.Array:
    lengths = [None if one is None or one.rles is None else len(one) for one in found]
    masks = [mask for one in found if one is not None for mask in one.rles or ()]
    return _list_array(lengths, pa.array(masks, pa.binary()))


def _track_ids(found: Sequence[Instances | None]) -> pa.Array:
    """Negative ids (of what has no identity: stuff) become null."""
    lengths = [None if one is None or one.track_ids is None else len(one) for one in found]
    parts = [one.track_ids for one in found if one is not None and one.track_ids is not None]
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return _list_array(lengths, pa.array(ids, pa.int64(), mask=ids < 0))


def _list_array(lengths: Sequence[int | None], values: pa.Array) -> pa.Array:
    """Lists of the given lengths over ``values``; None is a null list."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum([length or 0 for length in lengths], out=offsets[1:])
    mask = pa.array([length is None for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)
