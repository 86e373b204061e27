"""The numbers of a report, asked of the views: every query reads narrow columns and gives a bounded answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from infra.errors import StoreError
from tasks.output.encoding import PartFacts
from tasks.output.listing import PlanFacts, plan_of_shards, read_footers, read_plan_facts
from tasks.output.runs import RunRecord, list_runs, read_run
from tasks.output.views import Views

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
    """All that the page says of any product's results; see :mod:`tasks.report.panels` for the rest."""

    output: str
    fingerprint: str
    parameters: dict[str, Any]
    schema: str
    model: str
    statuses: dict[str, int]
    images: int
    frames: int
    videos: int
    reasons: tuple[Reason, ...]
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


def collect(views: Views) -> ReportData:
    """Ask everything. Works on an output in any state, also an empty one."""
    newest = views.listing.newest
    plan = read_plan_facts(views.listing.store, newest.plans[-1].key) if newest is not None and newest.plans else None
    runs = _runs(views, "" if newest is None else newest.fingerprint)
    counts = _rows(views, "SELECT status, count(*) FROM items GROUP BY 1")
    items = _rows(
        views,
        "SELECT count(*) FILTER (media = 'image'), count(*) FILTER (media = 'video'),"
        " count(DISTINCT uri) FILTER (media = 'video') FROM items",
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
        reasons=_reasons(views),
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


def _notes(views: Views) -> tuple[tuple[str, int], ...]:
    """What decoding had to do, which limits were reached; without numbers, so that equal things count together."""
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
