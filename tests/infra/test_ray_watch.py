"""A Ray that is gone is noticed by its processes, a cluster by its silence."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import ray_watch
from infra.errors import ServiceError
from infra.processes import ProcessId
from infra.ray_session import RaySession
from infra.ray_watch import ClusterWatch, LocalWatch, NoDeathNotices


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that name."""
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    process = subprocess.Popen([str(program), "60"])
    yield process
    process.kill()
    process.wait()


def test_a_killed_raylet_is_named_at_once(raylet: subprocess.Popen[bytes]) -> None:
    own = ProcessId(raylet.pid, psutil.Process(raylet.pid).create_time())
    session = RaySession("local", True, 2, 0.0, {}, LocalWatch([own]))
    session.check()
    raylet.kill()
    raylet.wait()
    with pytest.raises(ServiceError, match=f"its process raylet \\({raylet.pid}\\) was killed") as caught:
        session.check()
    assert "same command" in caught.value.hint


def wait_until_lost(watch: ClusterWatch) -> str:
    deadline = time.monotonic() + 20
    while (lost := watch.lost()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return lost


def test_a_cluster_that_answers_no_more_or_has_no_machine_left_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_PING_EVERY_S": 0.02, "_SILENT_S": 1.0, "_EMPTY_S": 0.5}.items():
        monkeypatch.setattr(ray_watch, name, value)
    machines = {"CPU": 4.0}
    empty = ClusterWatch(lambda: machines)
    time.sleep(0.7)
    assert empty.lost() is None
    machines.clear()
    assert "no machine of it has been left" in wait_until_lost(empty)
    empty.close()

    def refuse() -> dict[str, float]:
        raise ConnectionError

    silent = ClusterWatch(refuse)
    monkeypatch.setattr(ray_watch, "_EMPTY_S", 99.0)
    assert "its head has not answered" in wait_until_lost(silent)
    silent.close()


def test_the_pages_that_ray_logs_of_a_death_are_dropped_and_nothing_else() -> None:
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("ray", logging.WARNING, "", 0, text, None, None)

    assert not NoDeathNotices().filter(record("Raylet is terminated. Termination is unexpected. [state-dump] ..."))
    assert NoDeathNotices().filter(record("anything else"))
