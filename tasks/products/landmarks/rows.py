"""From what models found to the columns of ``landmarks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from modelkit.carriers.landmarks import ABSENT, KeypointSet, Landmarks
from tasks.output.list_columns import boxes_array, list_array, rows_array
from tasks.products.landmarks.schema import KEYPOINT_SET
from tasks.products.landmarks.surfaces import surface_to_png

Found = Sequence[Landmarks | None]


def columns(found: Found, class_names: Mapping[int, str]) -> dict[str, pa.Array]:
    """The parallel list columns. Null where nothing could be looked for, empty where nothing was found.

    Args:
        found: by row; None where an item failed.
        class_names: id -> name; ids without one are called ``class <id>``.
    """
    labels = _per_object(found, lambda one: one.labels, pa.int32())
    names = [class_names.get(label, f"class {label}") for label in labels.values.to_pylist()]
    boxes = [one.boxes_xyxy for one in found if one is not None]
    return {
        "labels": labels,
        "names": list_array(_lengths(found), pa.array(names, pa.string())),
        "scores": _per_object(found, lambda one: one.scores, pa.float32()),
        "boxes_xyxy": list_array(_lengths(found), boxes_array(boxes)),
        "keypoints_xy": list_array(_lengths(found), _by_object(found, _points)),
        "keypoint_scores": _per_point(found, lambda one: one.keypoint_scores, pa.float32()),
        "visibility": _per_point(found, lambda one: one.visibility, pa.uint8()),
        **_surfaces(found),
        "track_ids": _track_ids(found),
        "keypoint_set": pa.array([None if one is None else _set_of(one) for one in found], KEYPOINT_SET),
        "q_views": _agreement(found),
    }


def _lengths(found: Found) -> list[int | None]:
    return [None if one is None else len(one) for one in found]


def _per_object(found: Found, of: Callable[[Landmarks], np.ndarray], kind: pa.DataType) -> pa.Array:
    parts = [of(one) for one in found if one is not None]
    return list_array(_lengths(found), pa.array(np.concatenate(parts) if parts else np.zeros(0), kind))


def _per_point(found: Found, of: Callable[[Landmarks], np.ndarray], kind: pa.DataType) -> pa.Array:
    return list_array(_lengths(found), _by_object(found, lambda one: rows_array(of(one), kind)))


def _by_object(found: Found, of: Callable[[Landmarks], pa.Array]) -> pa.Array:
    """The arrays of all items, each with an entry per object, one after the other."""
    nothing = Landmarks.empty((1, 1), 0)
    return pa.concat_arrays([of(one) for one in (nothing, *found) if one is not None])


def _points(one: Landmarks) -> pa.Array:
    """n lists of K points of two numbers; null where a point is absent."""
    places, present = one.keypoints_xy.reshape(-1, 2), one.visibility.reshape(-1) > ABSENT
    points = list_array([2 if is_there else None for is_there in present], pa.array(places[present].reshape(-1)))
    n, count = one.visibility.shape
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * count, points)


def _surfaces(found: Found) -> dict[str, pa.Array]:
    lengths = [None if one is None or one.surfaces is None else len(one) for one in found]
    surfaces = [surface for one in found if one is not None for surface in one.surfaces or ()]
    origins = np.array([surface.origin_xy for surface in surfaces], np.int32).reshape(-1, 2)
    pngs = pa.array([surface_to_png(surface) for surface in surfaces], pa.binary())
    return {
        "surfaces": list_array(lengths, pngs),
        "surface_origins_xy": list_array(lengths, rows_array(origins, pa.int32())),
    }


def _track_ids(found: Found) -> pa.Array:
    """Negative ids (of objects that are no track's) become null."""
    lengths = [None if one is None or one.track_ids is None else len(one) for one in found]
    parts = [one.track_ids for one in found if one is not None and one.track_ids is not None]
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return list_array(lengths, pa.array(ids, pa.int64(), mask=ids < 0))


def _agreement(found: Found) -> pa.Array:
    """Null where no other views were looked at."""
    lengths = [None if one is None or one.agreement is None else len(one) for one in found]
    parts = [rows_array(one.agreement, pa.float32()) for one in found if one is not None and one.agreement is not None]
    return list_array(lengths, pa.concat_arrays([rows_array(np.zeros((0, 0)), pa.float32()), *parts]))


def _set_of(one: Landmarks) -> dict[str, Any] | None:
    """Points that nobody named are numbered; None of models without points."""
    count = one.visibility.shape[1]
    return (one.keypoint_set or KeypointSet.numbered(count)).to_json() if count else None
