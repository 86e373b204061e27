"""Run records: ``_runs/<run id>.json`` says what came of a run. Redacted on writing, plain JSON, kept for ever."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from infra.errors import StoreError
from infra.redaction import redact
from infra.store import Store
from tasks.output.layout import REPORT_KEY, RUNS_FOLDER, parse_run_key, run_key

FORMAT = "visionmill.run.v1"
_HEAD_BYTES = 1024  # of a report, in which it names the newest run it knows of


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What came of one run: one plan carried out, or as much of it as there was before something stopped it.

    Args:
        run_id: of the run; rows carry it.
        product: name of what the run wrote.
        source, output: as asked for.
        version: the version record (fingerprint, model, digest, parameters, schema).
        plan: number of the plan; None if there was nothing to do.
        plan_joined: the plan was there already (a restart, or a second driver).
        started_at, finished_at: ISO time, UTC.
        seconds: from start to finish, by the monotonic clock.
        outcome: "done", "stopped" (a signal), "circuit_open" or "failed".
        exit_code: 0 done, 1 could not be completed.
        message: of the error that ended it; empty if done.
        inventory: counts of the listing (objects, bytes, skipped by reason).
        items: rows by status of the whole plan (ok, failed, quarantined), from its committed shards.
        errors: number of items by "stage/error_type".
        error_sample: a few "uri: error" lines.
        shards: planned, committed before this run, committed by this run.
        stage_seconds: busy seconds by stage, all workers together.
        pool: workers, deaths, attempts, start-up seconds, peak memory, idle shares: what the pool reports.
        execution: how inference was run (eager or compiled, number format), with the measurements behind the choice.
        weights: summary of the weights record (name, digest, lineage, metrics, licence).
        environment: versions, processor, number of cores.
        items_per_s: rows of this run by its seconds of work (start-up apart).
    """

    run_id: str
    product: str
    source: str
    output: str
    version: dict[str, Any]
    plan: int | None
    plan_joined: bool
    started_at: str
    finished_at: str
    seconds: float
    outcome: str
    exit_code: int
    message: str = ""
    inventory: dict[str, Any] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    error_sample: tuple[str, ...] = ()
    shards: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    items_per_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the format's name first."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunRecord:
        """The record again; fields of newer versions are ignored, so that old readers read new records.

        Raises:
            ValueError: another format, or fields missing.
        """
        if value.get("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {value.get('format')!r}")
        known = {each.name for each in fields(cls)}
        content = {name: item for name, item in value.items() if name in known}
        try:
            record = cls(**content)
        except TypeError as error:
            raise ValueError(f"not a run record: {error}") from error
        object.__setattr__(record, "error_sample", tuple(record.error_sample))
        return record


def new_run_id(now: dt.datetime | None = None) -> str:
    """Sortable by time, unique: ``20261121T143000Z-1f2e3d``."""
    now = now or dt.datetime.now(dt.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def write_run(store: Store, record: RunRecord) -> str:
    """Write (or, by the same run, rewrite) the record; returns its key. Known secrets are cut out of every text."""
    key = run_key(record.run_id)
    store.put(key, _redacted_json(record.to_json()))
    return key


def _redacted_json(value: dict[str, Any]) -> bytes:
    """Redact text by text, not the encoded whole: a secret may hold characters that JSON escapes."""

    def clean(item: Any) -> Any:
        if isinstance(item, str):
            return redact(item)
        if isinstance(item, dict):
            return {redact(str(name)): clean(inner) for name, inner in item.items()}
        if isinstance(item, list | tuple):
            return [clean(inner) for inner in item]
        return item

    return (json.dumps(clean(value), indent=2, ensure_ascii=False, default=str) + "\n").encode()


def read_run(store: Store, run_id: str) -> RunRecord:
    """One record; ObjectGone if there is none, StoreError if it is damaged."""
    key = run_key(run_id)
    try:
        return RunRecord.from_json(json.loads(store.get(key)))
    except ValueError as error:
        raise StoreError(f"the run record {store.uri_of(key)} is damaged: {error}") from error


def report_is_current(store: Store) -> bool:
    """Whether the report knows of the newest run: it was written after it, and not left out or failed."""
    runs = list_runs(store)
    try:
        head = store.read_range(REPORT_KEY, 0, _HEAD_BYTES)
    except StoreError:
        return False
    return not runs or f'content="{runs[-1]}"'.encode() in head


def list_runs(store: Store) -> list[str]:
    """Ids of all runs, oldest first."""
    return sorted(run for run in (parse_run_key(entry.key) for entry in store.list(RUNS_FOLDER)) if run is not None)
