"""What the records of earlier runs say about a version: for reports and exports, which must also work without any."""

from __future__ import annotations

import json
from typing import Any

from infra.errors import StoreError
from infra.store import Store
from tasks.results.layout import RUNS_FOLDER, parse_run_key

RunFacts = dict[str, Any]


def runs_of(store: Store, fingerprint: str) -> list[RunFacts]:
    """The run records of one version, oldest first; unreadable ones are left out (a report is no place to fail)."""
    found = []
    for info in store.list(RUNS_FOLDER):
        if parse_run_key(info.key) is None:
            continue
        try:
            record = json.loads(store.get(info.key))
        except (StoreError, ValueError):
            continue
        if isinstance(record, dict) and _fingerprint(record) == fingerprint:
            found.append(record)
    return sorted(found, key=lambda record: str(record.get("started_at", "")))


def weights_of(runs: list[RunFacts]) -> RunFacts:
    """The weights record (``modelkit.weights``) that the newest run with one kept; empty if none did."""
    return next((run["weights"] for run in reversed(runs) if isinstance(run.get("weights"), dict)), {})


def _fingerprint(record: RunFacts) -> object:
    version = record.get("version")
    return version.get("fingerprint") if isinstance(version, dict) else version
