"""A run that is asked to stop does so in seconds, says so, and says what is left."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tasks.engine.pool import STOPPING
from tests.flows.command import SERIAL, end, segment, start
from tests.flows.scenes import write_scenes

ITEMS = 60


def started(source: Path, output: Path) -> subprocess.Popen[str]:
    """A job that has committed something."""
    process = start("segment", source, output, *SERIAL, "--json")
    deadline = time.monotonic() + 200
    while not list(output.glob("segments/*/*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_small_job_has_several_shards_and_stops_after_those_in_hand_with_what_is_left(
    tmp_path: Path, number: signal.Signals
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_scenes(source, ITEMS)
    process = started(source, output)
    asked = time.monotonic()
    process.send_signal(number)
    said = end(process, exit_code=1)
    assert time.monotonic() - asked < 10
    assert said.stderr.count(STOPPING) == 1
    left = said.summary["shards"]["planned"] - said.summary["shards"]["committed"]
    assert (said.summary["outcome"], said.summary["shards"]["planned"]) == ("stopped", 4)
    assert f"{left} of 4 shards are left (about {15 * left} objects); the same command goes on" in said.stderr
    assert segment(source, output)["items"]["ok"] == ITEMS


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_scenes(source, ITEMS)
    process = started(source, output)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # less than the items in hand take
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130, said
    assert said.count("interrupted; what is committed stays, the same command goes on from there") == 1
    assert "Traceback" not in said
