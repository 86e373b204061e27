"""How far apart the splits are: what judges must not look like what was learnt from, nor be the frame after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.loop.fingerprints import hamming
from tasks.loop.sequences import Picture
from tasks.loop.split_names import CALIBRATION, GATE, TEST, TRAIN

LABELLED = (TRAIN, CALIBRATION, GATE, TEST)
MOST = 4_000
"""Items of a split that are compared by their hashes, evenly spaced; more say nothing new."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Two splits.

    Args:
        one, other: their names.
        least_bits, median_bits: of 64, by which the hash of an item of the other differs from the nearest one of the
            first: of the nearest item, and of the median one. Unrelated pictures differ in about 30. None: no hashes.
        nearest: the nearest two, image ids.
        least_steps: between the nearest two whose names count together, in usual steps of their series; None where no
            two do.
        nearest_by_name: those two.
    """

    one: str
    other: str
    least_bits: int | None
    median_bits: float | None
    nearest: tuple[str, str] | None
    least_steps: float | None
    nearest_by_name: tuple[str, str] | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def distances(items: pa.Table) -> list[Apart]:
    """Every two of the labelled splits that have items.

    Args:
        items: ``split_items.v2``.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in items.select(["image_id", "uri", "phash64", "split"]).to_pylist():
        rows[row["split"]].append(row)
    steps = _usual_steps([row for split in LABELLED for row in rows.get(split, ())])
    pairs = combinations([split for split in LABELLED if rows.get(split)], 2)
    return [Apart(one, other, *_by_hash(rows[one], rows[other]), *_by_name(rows[one], rows[other], steps))
            for one, other in pairs]  # fmt: skip


def _by_hash(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> tuple[int | None, float | None, tuple[str, str] | None]:
    mine, theirs = (_sample([row for row in rows if row["phash64"] is not None]) for rows in (one, other))
    if not mine or not theirs:
        return None, None, None
    hashes = np.array([row["phash64"] for row in mine], np.int64)
    bits = np.array([_nearest(hashes, row["phash64"]) for row in theirs])
    place = int(bits[:, 0].argmin())
    pair = str(mine[int(bits[place, 1])]["image_id"]), str(theirs[place]["image_id"])
    return int(bits[place, 0]), float(np.median(bits[:, 0])), pair


def _nearest(hashes: np.ndarray, one: int) -> tuple[int, int]:
    found = hamming(hashes, np.array([one], np.int64))
    return int(found.min()), int(found.argmin())


def _sample(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(rows) <= MOST:
        return rows
    return [rows[k] for k in np.linspace(0, len(rows) - 1, MOST).astype(int).tolist()]


def _usual_steps(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Series -> the median step of its numbers."""
    numbers = _by_series(rows)
    return {
        series: float(max(1, np.median(np.diff(sorted(found))))) for series, found in numbers.items() if len(found) > 1
    }


def _by_series(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, str]]:
    found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for row in rows:
        each = Picture.of(row["image_id"], row["uri"], None)
        if each.order and row["image_id"] == row["uri"]:
            found[each.series][each.order[0]] = row["image_id"]
    return found


def _by_name(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], steps: Mapping[tuple[str, str], float]
) -> tuple[float | None, tuple[str, str] | None]:
    mine, theirs = _by_series(one), _by_series(other)
    found: list[tuple[float, tuple[str, str]]] = []
    for series in sorted(mine.keys() & theirs.keys()):
        known = np.array(sorted(mine[series]))
        for number, image_id in theirs[series].items():
            near = int(known[np.abs(known - number).argmin()])
            found.append((abs(near - number) / steps.get(series, 1.0), (mine[series][near], image_id)))
    return min(found) if found else (None, None)
