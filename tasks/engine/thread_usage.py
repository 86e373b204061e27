"""What the system tells of threads: how much processor time they have used, and whether they run or sleep."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Usage(NamedTuple):
    """Of a thread or process: processor time (s) in its life, None where the system does not tell, and its state.

    The state is the system's letter: R runs or wants to, S sleeps, D waits for a disk; "" where it does not tell.
    """

    cpu_s: float | None
    state: str


def thread_usage(pid: int, number: int) -> Usage:
    """Of one thread, by its number in the system."""
    return _read(f"/proc/{pid}/task/{number}/stat")


def other_usage(pid: int, known: Container[int]) -> dict[int, Usage]:
    """Of the threads of a process but those known, and of the processes below it, each as a whole. By number."""
    found = {}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            if int(name) not in known:
                found[int(name)] = thread_usage(pid, int(name))
    return found | {child: _read(f"/proc/{child}/stat") for child in _below(pid)}


def _below(pid: int) -> Iterator[int]:
    with suppress(psutil.Error):
        yield from (process.pid for process in psutil.Process(pid).children(recursive=True))


def _read(path: str) -> Usage:
    try:
        text = Path(path).read_text()
    except OSError:
        return Usage(None, "")
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, fields[0])
