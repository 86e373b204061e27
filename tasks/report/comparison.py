"""Two versions of one output: what the product's query answers for each, and the items that differ most."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tasks.output.views import Views
from tasks.report.item_pixels import Key
from tasks.report.panels import Panels
from tasks.report.report_samples import Gallery, samples_of

MAX_LINES = 40
_CHANGED = """
SELECT uri, frame FROM _older o JOIN (SELECT uri, frame, {amount} AS amount FROM items WHERE status = 'ok') n
       USING (uri, frame)
WHERE o.status = 'ok' AND n.amount <> o.amount ORDER BY abs(n.amount - o.amount) DESC, uri, frame
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the page says.

    Args:
        older, newer: fingerprints.
        statuses: (status before, status now, items) where any item is in either; "not there" is one, too.
        columns: of the query's answer. lines: its first column, then of each further one before, now and difference.
        changed: items in which another amount was found.
        galleries: pictures of the most changed ones, before and now.
    """

    older: str
    newer: str
    statuses: tuple[tuple[str, str, int], ...]
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[Any, Any, Any], ...]], ...]
    changed: int
    galleries: tuple[Gallery, ...]


def compare(older: Views, newer: Views, panels: Panels, samples: int, *, deadline: float) -> Comparison:
    """Compare two versions of one product.

    Args:
        older, newer: open views of one output, each of a version.
        samples: pictures, about. deadline: of time.monotonic(), after which none is loaded.
    """
    columns, lines = _answers(older, newer, panels)
    amount = panels.amount or "0"
    table = older.connection.sql(f"SELECT uri, frame, status, {amount} AS amount FROM items").to_arrow_table()
    newer.connection.register("_older", table)
    statuses = newer.connection.sql(
        "SELECT coalesce(o.status, 'not there') AS a, coalesce(n.status, 'not there') AS b, count(*) AS n"
        " FROM _older o FULL JOIN (SELECT uri, frame, status FROM items) n USING (uri, frame)"
        " GROUP BY a, b ORDER BY n DESC, a, b"
    ).fetchall()
    changed = _CHANGED.format(amount=amount)
    [(count,)] = newer.connection.sql(f"SELECT count(*) FROM ({changed})").fetchall()
    keys = newer.connection.sql(f"{changed} LIMIT {samples // 4}").fetchall()
    gallery = _gallery(older, newer, panels, keys, deadline) if keys else ()
    return Comparison(_fingerprint(older), _fingerprint(newer), tuple(statuses), columns, lines, count, gallery)


def _fingerprint(views: Views) -> str:
    return "" if views.listing.newest is None else views.listing.newest.fingerprint


def _answers(
    older: Views, newer: Views, panels: Panels
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[tuple[Any, Any, Any], ...]], ...]]:
    """The product's query, which names things in its first column and counts them in the others."""
    tables = [views.connection.sql(panels.query).to_arrow_table() for views in (older, newer)]
    columns = tuple(tables[1].column_names)
    before, now = ({str(row[columns[0]]): row for row in table.to_pylist()} for table in tables)
    lines = []
    for name in [*now, *(each for each in before if each not in now)][:MAX_LINES]:
        pairs = [(before.get(name, {}).get(column), now.get(name, {}).get(column)) for column in columns[1:]]
        lines.append((name, tuple((a, b, _difference(a, b)) for a, b in pairs)))
    return columns, tuple(lines)


def _difference(before: Any, now: Any) -> Any:
    known = [value for value in (before, now) if isinstance(value, int | float)]
    return (now or 0) - (before or 0) if known else None


def _gallery(older: Views, newer: Views, panels: Panels, keys: list[Key], deadline: float) -> tuple[Gallery, ...]:
    sides = [samples_of(views, panels, keys, deadline=deadline) for views in (older, newer)]
    both = []
    for before, now in zip(*sides, strict=True):
        both += [dataclasses.replace(each, summary=f"{word}: {each.summary}") for word, each in
                 (("before", before), ("now", now))]  # fmt: skip
    return (Gallery("Most changed", "items in which most came or went, before and now", tuple(both)),)
