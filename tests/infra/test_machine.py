"""Limits of containers count, wherever in the tree they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.machine import cpu_slots, memory_limit_bytes


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
