"""What a job tells at its end: one plain JSON object, the same for people's words, ``--json`` and Prefect's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.store import Store
from tasks.engine.prepare import PreparedJob
from tasks.ingest.inventory import Inventory
from tasks.output.encoding import AT_LIMIT
from tasks.output.layout import parts_prefix, product_prefix, run_key
from tasks.output.runs import RunRecord

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """Where the report lies that a run wrote, or why it could not; neither if it was to write none."""

    uri: str | None = None
    problem: str | None = None


def nothing_to_do(prepared: PreparedJob, inventory: Inventory, seconds: float, report: Report | None = None) -> Summary:
    """All of the dataset is committed already; nothing was written."""
    return {
        "run_id": None,
        "outcome": "nothing_to_do",
        "items": {"in_inventory": inventory.num_objects, "ok": 0, "failed": 0, "quarantined": 0},
        "left_out": inventory.skipped,
        "seconds": round(seconds, 3),
        "report": report and report.uri,
        "report_problem": report and report.problem,
        **_places(prepared.output, prepared),
        "exit_code": 0,
    }


def summary_of(prepared: PreparedJob, inventory: Inventory, record: RunRecord, report: Report) -> Summary:
    """A run that was carried out, or as much of it as could be."""
    return {
        "run_id": record.run_id,
        "outcome": record.outcome,
        "message": record.message,
        "plan": record.plan,
        "plan_joined": record.plan_joined,
        "items": {"in_inventory": inventory.num_objects, **record.items},
        "left_out": inventory.skipped,
        "errors": record.errors,
        "error_sample": list(record.error_sample)[:5],
        "notes": [*record.pool.get("notes", []), *limit_in_words(record.items)],
        "shards": record.shards,
        "seconds": record.seconds,
        "items_per_s": record.items_per_s,
        "execution": {name: record.execution.get(name) for name in ("mode", "reason", "choice")},
        **_places(prepared.output, prepared),
        "record": prepared.output.uri_of(run_key(record.run_id)),
        "report": report.uri,
        "report_problem": report.problem,
        "exit_code": record.exit_code,
    }


def limit_in_words(items: Mapping[str, int]) -> list[str]:
    """What is to be said where the model found as much in some items as it may, of counts of a run's items."""
    count = items.get(AT_LIMIT, 0)
    if not count:
        return []
    items_of = "1 item" if count == 1 else f"{count:,} items"
    return [f"in {items_of} the model found as many objects as it may, so there can be more: --detections N allows N"]


def words_of_job(summary: Summary) -> str:
    """A run in one line: for the terminal, and for the state that Prefect shows."""
    counts = summary["items"]
    if not summary["run_id"]:
        return f"nothing to do: all {counts['in_inventory']} items are committed already"
    said = f"{counts['ok']} ok, {counts['failed']} failed, {counts['quarantined']} quarantined"
    told = f"{said} in {summary['seconds']:.1f} s ({summary['items_per_s']:.1f} items/s)"
    return f"{told}; {summary['outcome']}: {summary['message']}" if summary["message"] else told


def _places(store: Store, prepared: PreparedJob) -> Summary:
    product = prepared.version.product
    return {
        "output": store.uri,
        "version": prepared.version.fingerprint,
        "model": prepared.version.model,
        "rows": store.uri_of(parts_prefix(prepared.version)),
        "rows_glob": store.uri_of(f"{product_prefix(product)}**/*.parquet"),
    }
