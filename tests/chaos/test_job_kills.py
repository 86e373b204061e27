"""Whole jobs with the shipped model, killed in every way: rows are the same bit for bit, and each end is explained."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.heartbeat import read_heartbeat
from tests.flows.command import DIGITS, end, start
from tests.flows.scenes import write_scenes

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

ITEMS = 24
JOB = ("--no-prefect", "--no-report", "--shard-items", "3", "--json", *DIGITS)


def rows_of(output: Path) -> pa.Table:
    """Every column but those that say who computed a row, and when."""
    parts = [pq.read_table(path) for path in sorted(output.glob("segments/*/*.parquet"))]
    return pa.concat_tables(parts).drop_columns(["run_id", "processed_at"]).sort_by([("uri", "ascending")])


def busy_workers(driver: int) -> list[int]:
    below = {process.pid for process in psutil.Process(driver).children(recursive=True)}
    beats = [read_heartbeat(folder) for folder in Path(tempfile.gettempdir()).glob("visionmill-heartbeat-*")]
    return [beat.pid for beat in beats if beat is not None and beat.pid in below and beat.oldest() is not None]


def wait_for(what: str, found: object, timeout_s: float = 240.0) -> object:
    """What ``found()`` gives once it gives something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := found():  # type: ignore[operator]
            return value
        time.sleep(0.02)
    raise AssertionError(f"no {what} within {timeout_s:.0f} s")


def kill_in_mid_run(process: subprocess.Popen[str], output: Path) -> None:
    """A worker as soon as it is busy, the driver after the first commit that follows."""
    (worker, *_) = wait_for("busy worker", lambda: busy_workers(process.pid))  # type: ignore[misc]
    os.kill(worker, signal.SIGKILL)
    wait_for("commit", lambda: list(output.glob("segments/*/*.parquet")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(600)
def test_killed_workers_and_drivers_and_another_way_to_run_change_no_bit(tmp_path: Path) -> None:
    """Ray's workers and this process's one, with other numbers of threads in the environment, each kind killed."""
    source, whole, killed = tmp_path / "in", tmp_path / "whole", tmp_path / "killed"
    write_scenes(source, ITEMS)
    end(start("segment", source, whole, "--ray", "none", *JOB, OMP_NUM_THREADS="3"))
    kill_in_mid_run(start("segment", source, killed, "--workers", "2", *JOB), killed)
    done = len(list(killed.glob("segments/*/*.parquet")))
    assert 0 < done < ITEMS // 3
    resumed = end(start("segment", source, killed, "--ray", "none", *JOB, OMP_NUM_THREADS="2")).summary
    assert (resumed["shards"]["committed_before"], resumed["notes"]) == (done, [])
    assert rows_of(killed).num_rows == ITEMS
    expected, found = rows_of(whole), rows_of(killed)
    different = [name for name in expected.column_names if not expected[name].equals(found[name])]
    assert different == []


@pytest.mark.timeout(600)
def test_a_killed_raylet_ends_the_run_in_seconds_with_one_message_and_its_plan_open(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    items = 4 * ITEMS  # workers outlive their raylet by a moment, and must not be through in it
    write_scenes(source, items)
    process = start("segment", source, output, "--workers", "2", *JOB)
    wait_for("busy worker", lambda: busy_workers(process.pid))
    below = psutil.Process(process.pid).children(recursive=True)
    (raylet,) = [one for one in below if one.name() == "raylet"]
    began = time.monotonic()
    raylet.kill()
    said = end(process, exit_code=1, timeout_s=90.0)
    assert time.monotonic() - began < 60.0  # about 5 on a machine that does nothing else
    assert said.stderr.count("the local Ray ended in the middle of the work") == 1
    assert "state-dump" not in said.stderr
    assert "same command" in said.summary["hint"]
    assert not psutil.wait_procs(below, timeout=20)[1]
    again = end(start("segment", source, output, "--ray", "none", *JOB)).summary  # at once: the lease is free
    assert again["plan_joined"] and again["items"]["ok"] == items
