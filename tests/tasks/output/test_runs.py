"""Run records: written, read back, listed, and without secrets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from infra.errors import ObjectGone, StoreError
from infra.store import open_store
from tasks.output.layout import run_key
from tasks.output.runs import RunRecord, list_runs, new_run_id, read_run, write_run


def record(run_id: str, **changes: object) -> RunRecord:
    base = RunRecord(
        run_id=run_id,
        product="segments",
        source="s3://bucket/in",
        output="s3://bucket/out",
        version={"fingerprint": "0" * 16},
        plan=1,
        plan_joined=False,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
        seconds=60.0,
        outcome="done",
        exit_code=0,
        error_sample=("a: b",),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_record_read_back_equals_the_one_written(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_id = new_run_id()
    written = record(run_id, items={"ok": 3, "failed": 1}, errors={"decode/TruncatedImage": 1})
    write_run(store, written)
    assert read_run(store, run_id) == written


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    names = ["20260101T000000Z-aaaaaa", "20260102T000000Z-000000"]
    for name in reversed(names):
        write_run(store, record(name))
    store.put("_runs/readme.txt", b"not a run")
    assert list_runs(store) == names


def test_secrets_of_the_environment_never_reach_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'pa"ss\\word-of-forty-characters-0123456789'
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = open_store(str(tmp_path))
    write_run(store, record("20260101T000000Z-aaaaaa", message=f"refused {secret}", error_sample=(f"x: {secret}",)))
    stored = store.get(run_key("20260101T000000Z-aaaaaa")).decode()
    assert secret not in stored and json.dumps(secret)[1:-1] not in stored
    assert "refused" in stored


def test_damaged_and_missing_records_are_told_apart(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(run_key("20260101T000000Z-aaaaaa"), b'{"format": "other"}')
    with pytest.raises(StoreError, match="damaged"):
        read_run(store, "20260101T000000Z-aaaaaa")
    with pytest.raises(ObjectGone):
        read_run(store, "20260101T000000Z-bbbbbb")


def test_fields_of_newer_versions_are_ignored(tmp_path: Path) -> None:
    value = record("20260101T000000Z-aaaaaa").to_json() | {"something_new": 1}
    assert RunRecord.from_json(value) == record("20260101T000000Z-aaaaaa")


def test_run_ids_are_unique_and_sort_by_time() -> None:
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
