"""The pictures of a round's report: what was accepted, ignored and rejected, and where the two models disagree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tasks.loop.disagreements import read_disagreements
from tasks.loop.findings import Disagreement
from tasks.loop.kinds import loop_kind
from tasks.output.views import Views
from tasks.product import find_kind, find_product
from tasks.report.drawing import resized
from tasks.report.labelled_samples import LabelledSamples, side_by_side
from tasks.report.report_samples import Gallery, Sample

Row = dict[str, Any]

# Title, explanation, decision, order of items, order of the objects on an item and how many: more would hide it.
_GALLERIES = (
    ("Accepted, drawn by chance", "labels that teach the student; the same items each time", "accept",
     "hash(image_id)", "score_calibrated DESC", 24),
    ("Accepted, least sure", "the labels nearest to their threshold: mistakes are likeliest here", "accept",
     "min(score - t_hi)", "score - t_hi", 2),
    ("Ignored", "neither taught nor background: too unsure, or refused by a rule", "ignore",
     "max(score_calibrated) DESC", "score_calibrated DESC", 12),
    ("Rejected", "taken as background; the surest of them", "reject",
     "max(score_calibrated) DESC", "score_calibrated DESC", 5),
)  # fmt: skip


def choose_and_draw(views: Views, record: Row, samples: int, *, budget_s: float) -> tuple[Gallery, ...]:
    """About ``samples`` pictures of what was decided in a round, in galleries.

    Args:
        views: of the loop's output.
        record: row of ``rounds.v1``.
        samples: 0 for none.
        budget_s: seconds after which the rest are placeholders that say so.
    """
    each = max(1, samples // len(_GALLERIES))
    draw = _Drawer(record["kind"], time.monotonic() + budget_s)
    galleries = []
    for title, explanation, decision, items, objects, most in _GALLERIES if samples > 0 else ():
        groups = _choose(views, record, decision, (items, objects), (each, most))
        if groups:
            galleries.append(Gallery(title, explanation, tuple(draw.decided(group) for group in groups)))
    return tuple(galleries)


def draw_disagreements(views: Views, record: Row, samples: int, *, budget_s: float) -> tuple[Gallery, ...]:
    """The gravest disagreements of a round as they were exported, champion to the left and candidate to the right."""
    found = read_disagreements(views.listing.store, loop_kind(record["kind"]), record["run_id"], record["round"])
    if samples < 1 or not found:
        return ()
    named = views.connection.execute(
        "SELECT DISTINCT name, label FROM threshold_sets WHERE threshold_set_id = ?", [record["threshold_set_id"]]
    ).fetchall()
    draw = _Drawer(record["kind"], time.monotonic() + budget_s, dict(named))
    said = "left: the champion, right: the candidate; only what they see differently is drawn"
    return (Gallery("Gravest first", said, tuple(draw.disagreement(each) for each in found[:samples])),)


def _choose(
    views: Views, record: Row, decision: str, order: tuple[str, str], limit: tuple[int, int]
) -> list[list[Row]]:
    """The rows of one decision, item by item; masks are read in a second step, of the chosen items only."""
    mine = [record["run_id"], record["round"], record["threshold_set_id"], decision]
    where = "run_id = ? AND round = ? AND threshold_set_id = ? AND decision = ?"
    chosen = views.connection.execute(
        f"SELECT image_id FROM pseudo_labels WHERE {where}"
        f" GROUP BY image_id ORDER BY {order[0]}, image_id LIMIT {limit[0]}",
        mine,
    ).fetchall()
    names = [image_id for (image_id,) in chosen]
    if not names:
        return []
    rows = views.connection.sql(
        f"SELECT * FROM pseudo_labels WHERE {where} AND image_id IN (SELECT unnest(?::VARCHAR[]))"
        f" QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY {order[1]}, seq) <= {limit[1]}",
        params=[*mine, names],
    ).to_arrow_table()
    found: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows.to_pylist():
        found[row["image_id"]].append(row)
    return list(found.values())


class _Drawer:
    """Draws candidates on their items."""

    def __init__(self, kind: str, deadline: float, labels: Mapping[str, int] = MappingProxyType({})) -> None:
        self._kind, self._deadline, self._labels = loop_kind(kind), deadline, labels
        self._overlay = find_product(find_kind(kind).product).overlay
        self._samples = LabelledSamples(deadline)

    def decided(self, rows: Sequence[Row]) -> Sample:
        """An item with its candidates of one decision."""
        first = rows[0]
        return self._samples.sample(
            first["uri"],
            first["frame"] if first["media"] == "video" else None,
            (first["height"], first["width"]),
            _summary(rows),
            lambda pixels: self._drawn(pixels, rows),
        )

    def disagreement(self, found: Disagreement) -> Sample:
        """An item with what only one side sees, or both see differently."""
        sides = [
            [{**row, "label": self._labels.get(row["name"], 0)} for row in found.side(side)]
            for side in ("champion", "candidate")
        ]

        def both(pixels: np.ndarray) -> np.ndarray:
            left, right = (self._drawn(pixels, rows) for rows in sides)
            return side_by_side(left, right)

        words = ", ".join(each.replace("_", " ") for each in found.differences)
        summary = f"{words}; weight {found.weight:.2f}"
        return self._samples.sample(found.uri, found.frame, found.size_hw, summary, both)

    def _drawn(self, pixels: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        return resized(pixels) if self._overlay is None else self._overlay(pixels, self._kind.item(rows))


def _summary(rows: Sequence[Row]) -> str:
    """``3 disc, 1 box: certified``."""
    names: dict[str, int] = {}
    for row in rows:
        names[row["name"]] = names.get(row["name"], 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in sorted(names.items(), key=lambda pair: (-pair[1], pair[0])))
    reasons = ", ".join(sorted({row["reason"].replace("_", " ") for row in rows}))
    return f"{listed}: {reasons}"
