"""Keeps out of the unlabelled items whatever touches calibration, gate or sealed test.

| against | what is kept out |
|---|---|
| calibration, gate, test | items of the same group, exact and near-duplicates (perceptual hashes within 6 bits) |
| train | exact and near-duplicates only: other frames of a *training* video are the most useful unlabelled data |

Whole objects are kept out: if one looked-at frame of a video touches, none of its frames is used. What could not be
read could not be compared either, and stays out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.loop.near import MAX_DISTANCE, near_pairs
from tasks.loop.schemas import SPLIT_ITEMS
from tasks.loop.split_names import CALIBRATION, GATE, TEST, TRAIN, UNLABELLED
from tasks.loop.splits import EXCLUDED
from tasks.output.tables import table_of

PROTECTED = (CALIBRATION, GATE, TEST)
_RANK = {TEST: 0, GATE: 1, CALIBRATION: 2, TRAIN: 3}  # when an item touches several, the report names the gravest


@dataclass(frozen=True, slots=True)
class Touch:
    """Why an object is kept out."""

    reason: str  # group, sha256, phash64 or unreadable
    image_id: str | None
    split: str | None
    distance: int | None = None


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """``items``: split_items.v2 of the unlabelled items, some excluded. ``counts``: objects by "reason vs split"."""

    items: pa.Table
    counts: dict[str, int]


def firewall(unlabelled: pa.Table, labelled: pa.Table, *, max_distance: int = MAX_DISTANCE) -> FirewallReport:
    """Divide unlabelled items into those that may be used and excluded ones.

    Args:
        unlabelled: ``fingerprints.v1``.
        labelled: ``split_items.v2`` of labelled items with their hashes.
        max_distance: bits in which near-duplicates may differ.
    """
    rows = unlabelled.to_pylist()
    known = [row for row in labelled.to_pylist() if row["split"] in _RANK]
    touches: dict[str, Touch] = {}
    for row, touch in [
        *_unreadable(rows),
        *_same_group(rows, known),
        *_same_bytes(rows, known),
        *_alike(rows, known, max_distance),
    ]:
        touches.setdefault(row["uri"], touch)
    counts = Counter(f"{touch.reason} vs {touch.split or 'any'}" for touch in touches.values())
    table = table_of(SPLIT_ITEMS, [_row(row, touches.get(row["uri"])) for row in rows])
    return FirewallReport(table.sort_by("image_id"), dict(sorted(counts.items())))


Row = Mapping[str, Any]


def _unreadable(rows: list[Row]) -> list[tuple[Row, Touch]]:
    return [(row, Touch("unreadable", None, None)) for row in rows if row["error"] is not None]


def _same_group(rows: list[Row], known: list[Row]) -> list[tuple[Row, Touch]]:
    groups = _gravest((row["group_id"], row) for row in known if row["split"] in PROTECTED)
    found = ((row, groups.get(row["group_id"])) for row in rows)
    return [(row, Touch("group", other["image_id"], other["split"])) for row, other in found if other is not None]


def _same_bytes(rows: list[Row], known: list[Row]) -> list[tuple[Row, Touch]]:
    digests = _gravest((row["sha256"], row) for row in known if row["sha256"] is not None)
    found = ((row, digests.get(row["sha256"])) for row in rows)
    return [(row, Touch("sha256", other["image_id"], other["split"])) for row, other in found if other is not None]


def _alike(rows: list[Row], known: list[Row], max_distance: int) -> list[tuple[Row, Touch]]:
    left = [row for row in rows if row["phash64"] is not None]
    right = sorted((row for row in known if row["phash64"] is not None), key=_grave)
    mine, which = np.unique(np.array([row["phash64"] for row in left], np.int64), return_inverse=True)
    theirs, first = np.unique(np.array([row["phash64"] for row in right], np.int64), return_index=True)
    nearest: dict[int, tuple[int, int]] = {}  # of my hashes: the gravest item that is near, and its distance
    for i, j, distance in near_pairs(mine, theirs, max_distance).tolist():
        found = (int(first[j]), distance)
        nearest[i] = min(nearest.get(i, found), found)
    touching = []
    for row, i in zip(left, which.tolist(), strict=True):
        if i in nearest:
            other, distance = right[nearest[i][0]], nearest[i][1]
            touching.append((row, Touch("phash64", other["image_id"], other["split"], distance)))
    return touching


def _grave(row: Row) -> tuple[int, str]:
    return _RANK[row["split"]], row["image_id"]


def _gravest(pairs: Any) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for name, row in sorted(pairs, key=lambda pair: _grave(pair[1])):
        found.setdefault(name, row)
    return found


def _row(row: Row, touch: Touch | None) -> dict[str, Any]:
    common = {name: row[name] for name in ("image_id", "uri", "group_id", "sha256", "phash64")}
    if touch is None:
        return {**common, "split": UNLABELLED}
    return {
        **common,
        "split": EXCLUDED,
        "reason": touch.reason,
        "touches": touch.image_id,
        "touches_split": touch.split,
        "distance": touch.distance,
    }


def count_leaks(accepted: pa.Table, items: pa.Table, *, max_distance: int = MAX_DISTANCE) -> int:
    """Images of accepted pseudo-labels that touch a protected split, or are not unlabelled: the gate demands none.

    Args:
        accepted: ``pseudo_labels.v2``.
        items: ``split_items.v2`` of all items. It is compared anew, so that a firewall that was bypassed shows.
    """
    names = ["image_id", "uri", "group_id", "sha256", "phash64"]
    rows: list[Row] = list({row["image_id"]: row for row in accepted.select(names).to_pylist()}.values())
    split = {row["uri"]: row["split"] for row in items.to_pylist()}
    known = [row for row in items.to_pylist() if row["split"] in PROTECTED]
    touching = [*_same_group(rows, known), *_same_bytes(rows, known), *_alike(rows, known, max_distance)]
    leaked = {row["image_id"] for row, _ in touching}
    leaked |= {row["image_id"] for row in rows if split.get(row["uri"]) != UNLABELLED}
    return len(leaked)
