"""The throughput benchmark: the rule for steady state, real tiny runs, the note that is written from them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.events import pace_of
from benchmarks.notes import Run, summarise, write_note
from benchmarks.throughput import Setting, carry_out, known_runs, measure, parse, settings_of


def test_steady_state_leaves_start_and_end_out() -> None:
    slow_start, steady, ragged_end = [(10.0, 10)], [(10.0 + k, 10) for k in range(1, 9)], [(30.0, 10)]
    pace = pace_of(slow_start + steady + ragged_end, began=0.0, ended=35.0)
    assert pace.images == 100
    assert pace.steady_per_s == pytest.approx(10.0)
    assert (pace.startup_s, pace.tail_s) == (10.0, 5.0)
    assert pace.overall_per_s == pytest.approx(100 / 35)


def test_too_few_moments_give_no_steady_state() -> None:
    assert pace_of([(1.0, 4)], began=0.0, ended=2.0).steady_per_s is None
    with pytest.raises(ValueError, match="no image"):
        pace_of([], began=0.0, ended=1.0)


def test_repeats_are_interleaved() -> None:
    given = parse(["--models", "tiny", "--contenders", "bare", "loop", "--repeats", "2"])
    order = [(setting.contender, setting.repeat) for setting in settings_of(given, "abc")]
    assert order == [("bare", 0), ("loop", 0), ("bare", 1), ("loop", 1)]


@pytest.mark.parametrize("contender", ["bare", pytest.param("visionmill", marks=pytest.mark.ray)])
def test_a_tiny_run_does_all_the_work_and_gives_its_figures(contender: str, tmp_path: Path) -> None:
    setting = Setting(contender, "tiny", images=8, cores=2, repeat=0, commit="abc")
    (run,) = measure([setting], tmp_path, timeout_s=240.0)
    assert (run.contender, run.images, run.repeat) == (contender, 8, 0)
    assert 0 < run.startup_s < run.seconds
    assert run.overall_per_s == pytest.approx(8 / run.seconds, rel=0.05)
    assert run.peak_bytes > 100 << 20
    assert run.extra["rows"] == (0 if contender == "bare" else 8)
    assert known_runs(tmp_path / "throughput.jsonl") == [run]
    assert measure([setting], tmp_path, timeout_s=0.0) == [run], "what is known is not run again"


def test_a_note_sets_every_contender_against_bare_loops_and_never_overwrites_another(tmp_path: Path) -> None:
    bare = Run("bare", "tiny", 1000, 2, 0, "abc", 1.0, 0.9, 2.0, 0.5, 1 << 30, 1100.0)
    text = summarise([bare, dataclasses.replace(bare, contender="visionmill", steady_per_s=2.0)], {"More": "1 2 3"})
    assert "| visionmill | 2.00 | 2.00 |" in text
    day = dt.date(2026, 1, 2)
    notes = [write_note(tmp_path / "notes", text, "the command", day) for _ in range(2)]
    assert [note.name for note in notes] == ["2026-01-02-throughput.md", "2026-01-02-throughput-2.md"]
    assert "`the command`" in notes[0].read_text()


def test_a_contender_that_fails_or_loses_rows_stops_the_benchmark(tmp_path: Path) -> None:
    setting = Setting("nobody", "tiny", images=8, cores=1, repeat=0, commit="abc")
    with pytest.raises(SystemExit, match="invalid choice: 'nobody'"):
        carry_out(setting, tmp_path, timeout_s=60.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match="left 7 rows of 8"):
        throughput._check_work(dataclasses.replace(setting, contender="daft"), images=8, rows=7)
    with pytest.raises(SystemExit, match="put 9 images through the model instead of 8"):
        throughput._check_work(setting, images=9, rows=8)
