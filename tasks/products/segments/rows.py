"""From what models found to the columns of ``segments``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from modelkit import rle
from modelkit.carriers import Instances
from tasks.output.list_columns import boxes_array, list_array
from tasks.products.segments.schema import QUALITIES


def columns(found: Sequence[Instances | None], class_names: Mapping[int, str]) -> dict[str, pa.Array]:
    """The parallel list columns. Null where nothing could be looked for, empty where nothing was found.

    Args:
        found: by row; None where an item failed.
        class_names: id -> name; ids without one are called ``class <id>``.
    """

    def lists(of: Callable[[Instances], np.ndarray], kind: pa.DataType) -> pa.Array:
        parts = [of(one) for one in found if one is not None]
        values = np.concatenate(parts) if parts else np.zeros(0)
        return list_array([None if one is None else len(one) for one in found], pa.array(values, kind))

    labels = lists(lambda one: one.labels, pa.int32())
    names = [class_names.get(label, f"class {label}") for label in labels.values.to_pylist()]
    areas = [areas_of(one) for one in found if one is not None]
    return {
        "labels": labels,
        "names": list_array(_lengths(found), pa.array(names, pa.string())),
        "scores": lists(lambda one: one.scores, pa.float32()),
        "boxes_xyxy": list_array(_lengths(found), boxes_array([one.boxes_xyxy for one in found if one is not None])),
        "areas": list_array(_lengths(found), pa.array(np.concatenate(areas) if areas else [], pa.int64())),
        "rles": _rles(found),
        "is_thing": lists(lambda one: one.is_thing.astype(bool), pa.bool_()),
        "track_ids": _track_ids(found),
        **_qualities(found),
    }


def _qualities(found: Sequence[Instances | None]) -> dict[str, pa.Array]:
    """Lists as long as labels; null where the quality was not measured."""
    measured_columns = {}
    for name in (each.name for each in QUALITIES):
        measured = [None if one is None else (one.qualities or {}).get(name) for one in found]
        parts = [values for values in measured if values is not None]
        values = np.concatenate(parts) if parts else np.zeros(0)
        lengths = [None if values is None else len(values) for values in measured]
        measured_columns[name] = list_array(lengths, pa.array(values, pa.float32()))
    return measured_columns


def _lengths(found: Sequence[Instances | None]) -> list[int | None]:
    return [None if one is None else len(one) for one in found]


def _rles(found: Sequence[Instances | None]) -> pa.Array:
    lengths = [None if one is None or one.rles is None else len(one) for one in found]
    masks = [mask for one in found if one is not None for mask in one.rles or ()]
    return list_array(lengths, pa.array(masks, pa.binary()))


def _track_ids(found: Sequence[Instances | None]) -> pa.Array:
    """Negative ids (of what has no identity: stuff) become null."""
    lengths = [None if one is None or one.track_ids is None else len(one) for one in found]
    parts = [one.track_ids for one in found if one is not None and one.track_ids is not None]
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return list_array(lengths, pa.array(ids, pa.int64(), mask=ids < 0))


def areas_of(found: Instances) -> np.ndarray:
    """(n,) int64 pixels: of the masks, or of the boxes for models without masks."""
    if found.rles is not None:
        return np.asarray(rle.areas(found.rles), np.int64)
    sides = np.maximum(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2], 0.0)
    return np.rint(sides.prod(axis=1)).astype(np.int64)
