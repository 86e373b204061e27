"""Limits of containers count, wherever in the tree they stand; freed memory is kept where malloc can be told so."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from infra.machine import cpu_slots, malloc_environment, memory_limit_bytes


@pytest.fixture
def allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("file", "content", "slots"),
    [
        ("cpu.max", "max 100000", None),
        ("cpu.max", "100000 100000", 1),
        ("cpu.max", "150000 100000", 1),  # one and a half: a second worker would only wait
        ("cpu.max", "50000 100000", 1),  # half: one worker all the same
        ("cpu.max", "99900000 100000", None),
        ("cpu/cpu.cfs_quota_us", "-1", None),
    ],
)
def test_processors(tmp_path: Path, allowed: int, file: str, content: str, slots: int | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert cpu_slots(tmp_path) == (min(slots, allowed) if slots else allowed)


def test_processors_of_the_older_kind(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert cpu_slots(tmp_path) == 1


def test_without_limits_all_is_ours(tmp_path: Path, allowed: int) -> None:
    assert cpu_slots(tmp_path) == allowed
    assert memory_limit_bytes(tmp_path) > 1 << 28


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory(tmp_path: Path, name: str) -> None:
    whole = memory_limit_bytes(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("268435456\n")
    assert memory_limit_bytes(tmp_path) == 268435456
    (tmp_path / name).write_text("max\n")
    assert memory_limit_bytes(tmp_path) == whole
    (tmp_path / name).write_text("9223372036854771712\n")
    assert memory_limit_bytes(tmp_path) == whole


_FAULTS_OF_A_THREAD = """
import numpy, resource, threading
def work():
    for size in (3, 40, 90) * 5:
        numpy.ones(size << 20, dtype=numpy.uint8)
def faults():
    thread = threading.Thread(target=work)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start(); thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not malloc_environment(), reason="another malloc")
def test_a_thread_that_needs_the_same_sizes_again_gets_the_same_memory() -> None:
    def faults(**extra: str) -> int:
        command = [sys.executable, "-c", _FAULTS_OF_A_THREAD]
        return int(subprocess.run(command, env=os.environ | extra, capture_output=True, check=True).stdout)

    pages = 5 * (3 + 40 + 90 << 20) // resource.getpagesize()
    assert faults(**malloc_environment()) < pages / 20


@pytest.mark.parametrize("libc", [("glibc", "2.31"), ("", ""), ("musl", "1.2.4")])
def test_malloc_of_another_kind_is_left_alone(libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    assert malloc_environment() == {}
