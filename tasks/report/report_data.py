"""The numbers of a report, asked of the views: every query reads narrow columns and gives a bounded answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from infra.errors import StoreError
from tasks.output.encoding import PartFacts
from tasks.output.listing import PlanFacts, plan_of_shards, read_footers, read_plan_facts
from tasks.output.runs import RunRecord, list_runs, read_run
from tasks.output.views import Views

SCORE_BINS = 20
MAX_CLASSES = 20
MAX_REASONS = 12
MAX_RUNS = 12

_STATUS = ("ok", "failed", "quarantined")


@dataclass(frozen=True, slots=True)
class Reason:
    """Failures of one kind."""

    stage: str
    error_type: str
    count: int
    examples: tuple[tuple[str, str], ...]  # (uri, error)


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """One class: how many instances, in how many items, how sure, and their scores in bins of [0, 1]."""

    label: int
    name: str
    is_thing: bool
    instances: int
    items: int
    mean_score: float
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """The newest plan: what it asked for and what is there."""

    number: int
    created_at: str
    source: str
    entries: int
    shards: int
    committed: int


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the page says, pictures apart."""

    output: str
    fingerprint: str
    parameters: dict[str, Any]
    schema: str
    model: str
    statuses: dict[str, int]
    images: int
    frames: int
    videos: int
    instances: int
    empty_items: int
    reasons: tuple[Reason, ...]
    classes: tuple[ClassFacts, ...]
    num_classes: int
    per_item: tuple[tuple[str, int], ...]  # instances per item, in ranges
    sizes: tuple[tuple[str, int], ...]  # instances by share of their image
    notes: tuple[tuple[str, int], ...]
    plan: PlanProgress | None
    other_versions: int
    runs: tuple[RunRecord, ...]  # newest first
    stage_seconds: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        return sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        return self.statuses["failed"] + self.statuses["quarantined"]

    @property
    def histogram(self) -> tuple[int, ...]:
        """Scores of all classes together (of the listed ones: the page says so when there are more)."""
        return tuple(map(sum, zip(*(each.histogram for each in self.classes), strict=True))) or (0,) * SCORE_BINS


def collect(views: Views) -> ReportData:
    """Ask everything. Works on an output in any state, also an empty one."""
    newest = views.listing.newest
    plan = read_plan_facts(views.listing.store, newest.plans[-1].key) if newest is not None and newest.plans else None
    runs = _runs(views, "" if newest is None else newest.fingerprint)
    counts = _rows(views, "SELECT status, count(*) FROM items GROUP BY 1")
    items = _rows(
        views,
        "SELECT count(*) FILTER (media = 'image'), count(*) FILTER (media = 'video'),"
        " count(DISTINCT uri) FILTER (media = 'video'), coalesce(sum(len(labels)), 0),"
        " count(*) FILTER (status = 'ok' AND len(labels) = 0) FROM items",
    )[0]
    models = _rows(views, "SELECT any_value(model) FROM items")
    return ReportData(
        output=views.listing.store.uri,
        fingerprint="" if newest is None else newest.fingerprint,
        parameters={} if plan is None else plan.version.parameters,
        schema="" if plan is None else plan.version.schema,
        model=str(models[0][0] or "") if models else "",
        statuses={name: dict(counts).get(name, 0) for name in _STATUS},
        images=items[0],
        frames=items[1],
        videos=items[2],
        instances=int(items[3]),
        empty_items=items[4],
        reasons=_reasons(views),
        classes=_classes(views),
        num_classes=_rows(views, "SELECT count(DISTINCT label) FROM instances")[0][0],
        per_item=_per_item(views),
        sizes=_sizes(views),
        notes=_notes(views),
        plan=None if plan is None else _progress(views, plan),
        other_versions=sum(bool(version.parts) for version in views.listing.versions) - (newest is not None),
        runs=runs,
        stage_seconds=_stage_seconds(views),
        weights=next((run.weights for run in runs if run.weights), {}),
    )


def _rows(views: Views, sql: str) -> list[tuple[Any, ...]]:
    return views.connection.execute(sql).fetchall()


def _reasons(views: Views) -> tuple[Reason, ...]:
    found = _rows(
        views,
        "SELECT coalesce(stage, '?'), coalesce(error_type, '?'), count(*) AS n,"
        " list_sort(min_by({'uri': uri, 'error': coalesce(error, '')}, uri, 3))"
        f" FROM failures GROUP BY 1, 2 ORDER BY n DESC, 1, 2 LIMIT {MAX_REASONS}",
    )
    return tuple(
        Reason(stage, kind, count, tuple((example["uri"], example["error"]) for example in examples))
        for stage, kind, count, examples in found
    )


def _classes(views: Views) -> tuple[ClassFacts, ...]:
    """The most frequent classes with their score histograms, in one pass over labels, names and scores."""
    bins = ", ".join(
        f"count(*) FILTER (least(CAST(floor(score * {SCORE_BINS}) AS INTEGER), {SCORE_BINS - 1}) = {index})"
        for index in range(SCORE_BINS)
    )
    found = _rows(
        views,
        "SELECT label, coalesce(any_value(name), 'class ' || label), bool_or(is_thing), count(*) AS n,"
        f" count(DISTINCT (uri, frame)), avg(score), [{bins}]"
        f" FROM instances GROUP BY label ORDER BY n DESC, label LIMIT {MAX_CLASSES}",
    )
    return tuple(
        ClassFacts(label, name, is_thing, count, items, mean, tuple(histogram))
        for label, name, is_thing, count, items, mean, histogram in found
    )


def _per_item(views: Views) -> tuple[tuple[str, int], ...]:
    ranges = [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, None)]
    return _in_ranges(views, ranges, "len(labels)", "items WHERE status = 'ok'")


def _in_ranges(
    views: Views, ranges: Sequence[tuple[int, int | None]], value: str, source: str
) -> tuple[tuple[str, int], ...]:
    counts = ", ".join(
        f"count(*) FILTER ({value} >= {low}" + (")" if high is None else f" AND {value} <= {high})")
        for low, high in ranges
    )
    row = _rows(views, f"SELECT {counts} FROM {source}")[0]
    names = [f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    last = max((index for index, count in enumerate(row) if count), default=-1)
    return tuple(zip(names, row, strict=True))[: last + 1]


def _sizes(views: Views) -> tuple[tuple[str, int], ...]:
    """By the share of the image that the mask covers: comparable between resolutions."""
    edges = [0.0, 0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.01]
    names = ["< 0.1 %", "0.1-0.5 %", "0.5-2 %", "2-5 %", "5-10 %", "10-25 %", "> 25 %"]
    counts = ", ".join(f"count(*) FILTER (share >= {low} AND share < {high})" for low, high in pairwise(edges))
    row = _rows(views, f"SELECT {counts} FROM (SELECT area / (width::DOUBLE * height) AS share FROM instances)")[0]
    return tuple(zip(names, row, strict=True)) if any(row) else ()


def _notes(views: Views) -> tuple[tuple[str, int], ...]:
    """What decoding had to do, with numbers left out so that equal things count together."""
    found = _rows(
        views,
        "SELECT regexp_replace(note, '[0-9]+', 'n', 'g') AS kind, count(*) AS n"
        " FROM (SELECT unnest(notes) AS note FROM items) GROUP BY kind ORDER BY n DESC, kind LIMIT 8",
    )
    return tuple(found)


def _progress(views: Views, plan: PlanFacts) -> PlanProgress:
    newest = views.listing.newest
    assert newest is not None, "a plan was read from it"
    number = int(plan.facts["number"])
    parts = {part.shard_id for part in newest.parts}
    held = len(parts)
    if number > 1:
        held = len(parts & {shard for shard, of in plan_of_shards(views.listing.store, newest).items() if of == number})
    return PlanProgress(
        number, plan.created_at, str(plan.facts["source"]), int(plan.facts["num_entries"]),
        int(plan.facts["num_shards"]), held,
    )  # fmt: skip


def _runs(views: Views, fingerprint: str) -> tuple[RunRecord, ...]:
    """The newest runs of the version; a damaged record is left out: a report is no place to fail."""
    found: list[RunRecord] = []
    for run_id in reversed(list_runs(views.listing.store)):
        try:
            record = read_run(views.listing.store, run_id)
        except (StoreError, json.JSONDecodeError):
            continue
        if record.version.get("fingerprint") == fingerprint:
            found.append(record)
        if len(found) == MAX_RUNS:
            break
    return tuple(found)


def _stage_seconds(views: Views) -> dict[str, float]:
    """Busy seconds by stage over all parts of the version, from their footers (at most 2,000, evenly chosen)."""
    newest = views.listing.newest
    parts = () if newest is None else newest.parts[:: max(1, len(newest.parts) // 2000)]
    totals: dict[str, float] = {}
    for _, footer in read_footers(views.listing.store, parts):
        if isinstance(footer, Exception):
            continue
        try:
            facts = PartFacts.from_metadata(footer.metadata or {})
        except ValueError:
            continue
        for stage, seconds in facts.stage_seconds.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return totals
