"""The list of items in a report: all of them, or of a large output the failures and as many others as find room."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tasks.output.naming import shared_folder
from tasks.output.views import Views
from tasks.report.panels import Panels

MAX_ITEMS = 10_000
MAX_REASON_CHARACTERS = 200
STATUSES = ("ok", "failed", "quarantined")


@dataclass(frozen=True, slots=True)
class ItemList:
    """What the page's script makes a table of.

    Args:
        data: JSON, safe inside of a script element: ``root`` of all addresses, ``names``, ``statuses``, ``reasons``,
            and ``rows`` of address, frame, status, [[name, best score in hundredths], ...] and reason (-1: none).
        names: of what was found, sorted.
        listed, total: items in the list and in the output.
    """

    data: Markup
    names: tuple[str, ...]
    listed: int
    total: int


def list_items(views: Views, panels: Panels) -> ItemList:
    """Failures first to find room, then in the order of their names."""
    columns = ", ".join(["uri", "frame", "status", "stage", "error_type", "error", *panels.facet_columns])
    found = views.connection.sql(
        f"SELECT {columns} FROM items ORDER BY status = 'ok', uri, frame LIMIT {MAX_ITEMS}"
    ).to_arrow_table()
    rows = sorted(found.to_pylist(), key=lambda row: (row["uri"], row["frame"]))
    [(total,)] = views.connection.sql("SELECT count(*) FROM items").fetchall()
    facets = [panels.facets(row) if row["status"] == "ok" else {} for row in rows]
    names = sorted({name for each in facets for name in each})
    reasons: dict[str, int] = {}
    root = shared_folder(rows[0]["uri"], rows[-1]["uri"]) if rows else ""
    places = {name: place for place, name in enumerate(names)}
    lines = [_line(row, each, root, places, reasons) for row, each in zip(rows, facets, strict=True)]
    content = {"root": root, "names": names, "statuses": STATUSES, "reasons": list(reasons), "rows": lines}
    return ItemList(safe_json(content), tuple(names), len(rows), total)


def _line(
    row: Mapping[str, Any], facets: Mapping[str, float], root: str, places: Mapping[str, int], reasons: dict[str, int]
) -> list[Any]:
    reason = -1
    if row["status"] != "ok":
        text = f"{row['stage']}: {row['error_type']}: {row['error']}"[:MAX_REASON_CHARACTERS]
        reason = reasons.setdefault(text, len(reasons))
    best = [[places[name], round(100 * score)] for name, score in facets.items()]
    return [row["uri"].removeprefix(root), row["frame"], STATUSES.index(row["status"]), best, reason]


def safe_json(content: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
