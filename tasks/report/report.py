"""``report/index.html``: one page for people, with all pictures inside and nothing loaded from anywhere."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import shlex
import time
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from infra.errors import UsageError
from infra.store import Store, open_store
from tasks.output.layout import REPORT_KEY, product_prefix
from tasks.output.runs import list_runs
from tasks.output.views import Views, views_of
from tasks.report import charts
from tasks.report.comparison import Comparison, compare
from tasks.report.item_list import ItemList, list_items
from tasks.report.page import page_template
from tasks.report.panels import Panels, panels_of
from tasks.report.report_data import ReportData, collect
from tasks.report.report_samples import Gallery, choose_and_load

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Where a report lies."""

    index_uri: str


def write_report(
    output: str,
    *,
    samples: int = 24,
    budget_s: float = 60.0,
    product: str | None = None,
    min_score: float = 0.0,
    compare_with: str | None = None,
) -> ReportPaths:
    """Write (or rewrite) the report of an output into the output itself.

    Args:
        output: folder or ``s3://bucket/prefix`` of a job's output, in any state.
        samples: pictures, about; 0 for none. A source that cannot be read any more gives a placeholder.
        budget_s: seconds after which no further picture is loaded.
        product: whose results, where the output holds those of several.
        min_score: in [0, 1]; what scores less is neither counted nor drawn.
        compare_with: the fingerprint, or its beginning, of another version, which the newest is compared with.

    Raises:
        UsageError: the place holds no output of a job, or no such version.
        StoreError: when results cannot be read or the page cannot be written.
    """
    store = open_store(output)
    views = views_of(store, product=product, min_score=min_score)
    try:
        if views.product is None:
            raise UsageError(f"{output} holds no results of a job", hint="run a job first, or check the path")
        panels = panels_of(views)
        compared = None
        if compare_with is not None:  # first: a version that is not there costs no pictures
            compared = _compared(store, views, panels, samples, compare_with, time.monotonic() + budget_s)
        galleries = choose_and_load(views, panels, samples, budget_s=budget_s)
        page = render(
            views.product.name,
            collect(views),
            panels,
            galleries,
            list_items(views, panels),
            compared,
            newest_run=(list_runs(store) or [""])[-1],
        )
    finally:
        views.connection.close()
    store.put(REPORT_KEY, page.encode())
    return ReportPaths(store.uri_of(REPORT_KEY))


def _compared(store: Store, views: Views, panels: Panels, samples: int, version: str, deadline: float) -> Comparison:
    assert views.product is not None  # as the caller found out
    older = views_of(store, product=views.product.name, min_score=views.min_score, version=version)
    try:
        return compare(older, views, panels, samples, deadline=deadline)
    finally:
        older.connection.close()


def render(
    product: str,
    data: ReportData,
    panels: Panels,
    galleries: tuple[Gallery, ...],
    items: ItemList,
    compared: Comparison | None = None,
    *,
    newest_run: str = "",
) -> str:
    """The page as text. Everything that comes from data is escaped by the template engine.

    The only script that the page's policy lets run is ours, named by its digest.

    ``newest_run``: of the output; the next run sees from it whether the page knows of all that is there.
    """
    script = resources.files("tasks.report").joinpath("page_script.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    source = data.plan.source if data.plan is not None else data.output
    last = next((run for run in data.runs if run.items_per_s > 0), None)
    return page_template("tasks.report", _TEMPLATE).render(
        data=data,
        newest_run=newest_run,
        panels=panels,
        galleries=galleries,
        items=items,
        compared=compared,
        figure=_figure,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        n=charts.number,
        short_source=source.rstrip("/").rsplit("/", 1)[-1] or source,
        charts=_charts(data),
        items_note=_items_note(data),
        failed_note=f"{100 * data.num_failed / max(data.num_items, 1):.2g} % of all items",
        speed="-" if last is None else charts.number(last.items_per_s),
        speed_note="no finished run recorded" if last is None else _speed_note(last.pool),
        execution=_plain_rows(data.runs[0].execution if data.runs else {}),
        facts=_facts(data),
        glob=f"{data.output.rstrip('/')}/{product_prefix(product)}**/*.parquet",
        quoted_output=shlex.quote(data.output),
        written_at=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M"),
    )


def _figure(value: Any, sign: str = "") -> str:
    """A number of a table, or what else stands in its place."""
    if isinstance(value, float):
        return format(value, f"{sign}.3f")
    return "-" if value is None else format(value, f"{sign},") if isinstance(value, int) else str(value)


def _charts(data: ReportData) -> dict[str, Any]:
    stages = sorted(data.stage_seconds.items(), key=lambda pair: -pair[1])
    return {
        "status": charts.stacked_bar("Items by status", [(name, count, name) for name, count in data.statuses.items()]),
        "stages": charts.horizontal_bars("Busy seconds by stage", stages, unit="s") if stages else "",
    }


def _items_note(data: ReportData) -> str:
    parts = [f"{charts.number(data.images)} images"] if data.images or not data.frames else []
    if data.frames:
        videos = f"{charts.number(data.videos)} video{'' if data.videos == 1 else 's'}"
        parts.append(f"{charts.number(data.frames)} frames of {videos}")
    return ", ".join(parts)


def _speed_note(pool: dict[str, Any]) -> str:
    workers = pool.get("workers_started")
    return f"last run, {workers} worker{'' if workers == 1 else 's'}" if workers else "last run"


def _facts(data: ReportData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled tables of names and values."""
    weights = data.weights
    model = {"weights": data.model} | {
        name: weights[name]
        for name in ("architecture", "task", "num_parameters", "digest", "licence", "created")
        if weights.get(name)
    }
    version = {"fingerprint": data.fingerprint, "schema": data.schema, **data.parameters}
    if data.other_versions:
        version["other versions in this output"] = data.other_versions
    tables = [("Model", model), ("Version", version)]
    if data.plan is not None:
        plan = data.plan
        facts = {"plan": plan.number, "made": plan.created_at, "source": plan.source, "entries": plan.entries,
                 "shards": f"{plan.committed} of {plan.shards} committed"}  # fmt: skip
        tables.append(("Newest plan", facts))
    for title, record in (("Metrics", weights.get("metrics")), ("Lineage", weights.get("lineage"))):
        if record:
            tables.append((title, record))
    return [(title, _plain_rows(record)) for title, record in tables if record]


def _plain_rows(record: dict[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested records as rows: ``test / mask / AP50``; long lists are counted instead of printed."""
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict) and depth < 3:
            rows.extend(_plain_rows(value, f"{title} / ", depth + 1))
        elif isinstance(value, list | tuple) and len(value) > 8:
            rows.append((title, f"{len(value)} values"))
        elif isinstance(value, float):
            rows.append((title, f"{value:.4g}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((title, f"{value:,}"))
        elif value not in (None, "", [], {}):
            rows.append((title, str(value)))
    return rows[:40] if depth == 0 else rows
