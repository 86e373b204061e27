"""What reports say alike of products whose things have a class and a score: ``names`` and ``scores`` of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.output.views import Views

_RANGES = [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, None)]


def facets(row: Mapping[str, Any]) -> dict[str, float]:
    """Class -> its best score in an item."""
    best: dict[str, float] = {}
    for name, score in zip(row["names"] or (), row["scores"] or (), strict=True):
        best[str(name)] = max(score, best.get(str(name), 0.0))
    return best


def summary_of(row: Mapping[str, Any]) -> str:
    """``3 × disc, 1 × box; mean score 0.82``."""
    names: dict[str, int] = {}
    for name in row["names"] or ():
        names[name] = names.get(name, 0) + 1
    if not names:
        return "nothing found"
    listed = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
    said = ", ".join(f"{count} × {name}" for name, count in listed[:4]) + (", ..." if len(listed) > 4 else "")
    return f"{said}; mean score {np.mean(row['scores']):.2f}"


def rows_of(views: Views, sql: str) -> list[tuple[Any, ...]]:
    """The answer of a query."""
    return views.connection.execute(sql).fetchall()


def things_per_item(views: Views) -> tuple[tuple[str, int], ...]:
    """How many ok items have so many things, in ranges; the last ones that no item has are left out."""
    return _in_ranges(views, _RANGES, "len(labels)", "items WHERE status = 'ok'")


def _in_ranges(
    views: Views, ranges: Sequence[tuple[int, int | None]], value: str, source: str
) -> tuple[tuple[str, int], ...]:
    counts = ", ".join(
        f"count(*) FILTER ({value} >= {low}" + (")" if high is None else f" AND {value} <= {high})")
        for low, high in ranges
    )
    row = rows_of(views, f"SELECT {counts} FROM {source}")[0]
    names = [f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    last = max((index for index, count in enumerate(row) if count), default=-1)
    return tuple(zip(names, row, strict=True))[: last + 1]
