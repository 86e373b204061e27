"""The last step: what is committed now, counted from the parts themselves, becomes the run's record and exit code."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from infra.errors import StoreError
from infra.store import Store
from tasks.output.encoding import PartFacts
from tasks.output.layout import plan_key, version_to_json
from tasks.output.listing import ListedVersion, list_committed, plan_of_shards, read_footers
from tasks.output.runs import RunRecord, write_run
from tasks.product import find_product
from tasks.records import Version


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """What the parts of one plan say.

    Args:
        shards: committed ones.
        items: rows by status ("ok", "failed", "quarantined") and what was found, under the name of the product's unit.
        unreadable: "uri: why" of parts whose footer could not be read; they are counted in ``shards`` only.
    """

    shards: int = 0
    items: dict[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()


def plan_totals(store: Store, version: Version, plan: int) -> PlanTotals:
    """Count the committed shards of a plan and their rows, from the parts' footers: right whoever committed them."""
    listed = next(
        (held for held in list_committed(store, version.product).versions if held.fingerprint == version.fingerprint),
        ListedVersion(version.fingerprint, (), ()),
    )
    own_plan = tuple(info for info in listed.plans if info.key == plan_key(version, plan))
    numbers = plan_of_shards(store, replace(listed, plans=own_plan))
    parts = [part for part in listed.parts if part.shard_id in numbers]
    items: Counter[str] = Counter()
    unreadable = []
    for part, footer in read_footers(store, parts):
        try:
            if isinstance(footer, Exception):
                raise footer
            items.update(PartFacts.from_metadata(footer.metadata or {}).items)
        except (StoreError, pa.ArrowInvalid, ValueError) as error:
            unreadable.append(f"{store.uri_of(part.info.key)}: {error}")
    return PlanTotals(len(parts), dict(items), tuple(unreadable))


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the flow knows of a run before it is closed; the fields are those of :class:`RunRecord`."""

    run_id: str
    source: str
    output: str
    version: Version
    started_at: dt.datetime
    plan: int
    plan_joined: bool
    inventory: dict[str, Any]
    weights: dict[str, Any]
    execution: dict[str, Any]
    environment: dict[str, Any]


def finish_run(
    store: Store,
    facts: RunFacts,
    *,
    outcome: str,
    message: str,
    shards: dict[str, int],
    errors: dict[str, int],
    error_sample: tuple[str, ...],
    stage_seconds: dict[str, float],
    pool: dict[str, Any],
    items_per_s: float,
) -> RunRecord:
    """Write the run's record. The exit code is 0 only when every shard of the plan is committed."""
    totals = plan_totals(store, facts.version, facts.plan)
    now = dt.datetime.now(dt.UTC)
    done = outcome == "done" and totals.shards >= shards["planned"]
    record = RunRecord(
        run_id=facts.run_id,
        product=facts.version.product,
        source=facts.source,
        output=facts.output,
        version=version_to_json(facts.version),
        plan=facts.plan,
        plan_joined=facts.plan_joined,
        started_at=facts.started_at.isoformat(timespec="milliseconds"),
        finished_at=now.isoformat(timespec="milliseconds"),
        seconds=round((now - facts.started_at).total_seconds(), 3),
        outcome=outcome if done or outcome != "done" else "failed",
        exit_code=0 if done else 1,
        message=message or ("; ".join(totals.unreadable[:3]) if totals.unreadable else ""),
        inventory=facts.inventory,
        items={"ok": 0, "failed": 0, "quarantined": 0, find_product(facts.version.product).unit: 0} | totals.items,
        errors=errors,
        error_sample=error_sample,
        shards=shards | {"committed": totals.shards},
        stage_seconds={name: round(seconds, 3) for name, seconds in stage_seconds.items()},
        pool=pool,
        execution=facts.execution,
        weights=facts.weights,
        environment=facts.environment,
        items_per_s=round(items_per_s, 3),
    )
    write_run(store, record)
    return record
