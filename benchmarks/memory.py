"""Peak memory of a program and everything it started, sampled from outside."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

_EVERY_S = 0.5


def resident_bytes(process: psutil.Process) -> int:
    """Memory of one process; what it shares with others counts by its share (Linux), else all of it."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class PeakMemory:
    """Context manager around a running program: the largest sum over the program and all its descendants.

    Processes that leave the tree (daemons) are still counted once they have been seen in it.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._sum())
            if self._stop.wait(_EVERY_S):
                return

    def _sum(self) -> int:
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            family = []
        self._seen |= {process.pid: process for process in family}
        self._seen = {pid: process for pid, process in self._seen.items() if process.is_running()}
        return sum(map(resident_bytes, self._seen.values()))
