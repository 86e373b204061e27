"""What must be true of every row of ``landmarks`` that has a result; ``visionmill verify --deep`` asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from modelkit.carriers.landmarks import ABSENT, VISIBLE, KeypointSet
from tasks.products.landmarks.surfaces import surface_from_png

_LISTS = ("names", "scores", "boxes_xyxy", "keypoints_xy", "keypoint_scores", "visibility")
_OPTIONAL_LISTS = ("surfaces", "surface_origins_xy", "track_ids")  # null for models that have none
_BY_KEYPOINT = ("keypoints_xy", "keypoint_scores", "visibility")


def check(found: pa.Table) -> Iterator[str]:
    """Parallel lists of equal length, as many points as are named, scores in range, surfaces that can be read.

    Args:
        found: rows with a result.
    """
    columns = ("uri", "frame", "labels", *_LISTS, *_OPTIONAL_LISTS, "keypoint_set")
    for batch in found.select(columns).to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            for problem in _problems(row):
                yield f"row of {row['uri']!r}, frame {row['frame']}: {problem}"


def _problems(row: Mapping[str, Any]) -> Iterator[str]:
    n = len(row["labels"])
    uneven = [name for name in _LISTS if row[name] is None or len(row[name]) != n]
    uneven += [name for name in _OPTIONAL_LISTS if row[name] is not None and len(row[name]) != n]
    yield from (f"{name} is not as long as labels" for name in uneven)
    if uneven:
        return
    if not all(0 <= score <= 1 for score in row["scores"]):
        yield "scores outside of [0, 1]"
    count = yield from _check_set(row["keypoint_set"])
    for place in range(n):
        lengths = {len(row[name][place]) for name in _BY_KEYPOINT}
        if lengths != {count}:
            yield f"object {place}: {sorted(lengths)} keypoints, {count} are named"
        else:
            yield from _check_points(place, *(row[name][place] for name in _BY_KEYPOINT))
    for place, data in enumerate(row["surfaces"] or ()):
        try:
            surface_from_png(data, tuple(row["surface_origins_xy"][place]))
        except (ValueError, TypeError) as error:
            yield f"object {place}: {error}"


def _check_set(said: Mapping[str, Any] | None) -> Any:
    """How many keypoints a row names; problems are yielded on the way."""
    if said is None:
        return 0
    try:
        KeypointSet.from_json(said)
    except (ValueError, TypeError) as error:
        yield f"keypoint_set: {error}"
    return len(said["names"])


def _check_points(place: int, points: list[Any], scores: list[float], visibility: list[int]) -> Iterator[str]:
    if any((point is None) != (v == ABSENT) for point, v in zip(points, visibility, strict=True)):
        yield f"object {place}: a keypoint is absent in one of keypoints_xy and visibility, not in the other"
    if not all(ABSENT <= v <= VISIBLE for v in visibility):
        yield f"object {place}: visibility {sorted(set(visibility))}"
    if not all(0 <= score <= 1 for score in scores):
        yield f"object {place}: keypoint_scores outside of [0, 1]"
