"""What a job could not write it says, and what a dead store refuses hides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flows.job
from infra.errors import NoSpaceLeft
from tests.flows.command import DIGITS, visionmill
from tests.flows.scenes import write_scenes

ONCE = ("--ray", "none", "--no-prefect", "--compile", "off", *DIGITS, "--json")


def test_a_report_that_could_not_be_written_is_said_and_the_next_run_writes_it(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_scenes(source, 2)
    output.mkdir()
    (output / "report").write_text("in the way")
    said = visionmill("segment", source, output, *ONCE)
    assert "the report could not be written, the next run tries again" in said.stderr
    assert said.summary["items"]["ok"] == 2
    assert said.summary["report"] is None and "could not be written" in said.summary["report_problem"]

    (output / "report").unlink()
    page = output / "report" / "index.html"
    assert visionmill("segment", source, output, *ONCE).summary["report"] == str(page)
    written = page.stat().st_mtime_ns
    assert visionmill("segment", source, output, *ONCE).summary["report"] is None
    assert page.stat().st_mtime_ns == written


def test_a_record_that_cannot_be_written_does_not_hide_why_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise NoSpaceLeft("no space left for the record")

    monkeypatch.setattr(flows.job, "finish_run", full)
    source = tmp_path / "in"
    source.mkdir()
    for index in range(24):
        (source / f"{index}.jpg").write_bytes(b"no image")
    words = ("segment", source, tmp_path / "out", *ONCE, "--max-consecutive-failures", "1", "--shard-items", "1")
    said = visionmill(*words, exit_code=1)
    assert "failed in a row" in said.stderr or "in a row" in said.summary["error"]
    assert "no space" not in said.summary["error"]
