"""Peak memory of a program and everything it started, sampled from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import psutil

_EVERY_S = 0.5


def total_bytes(processes: Iterable[psutil.Process]) -> int:
    """Memory of several processes: what is theirs alone, and once what they share (as the one has it that shares most).

    Where the system does not tell shared pages apart (macOS), all of each. Exact shares (``smaps_rollup``) cost 18 ms
    of a core for each process that has torch loaded; asked twice a second of many processes, that comes out of what is
    to be measured.
    """
    own, shared = 0, 0
    for process in processes:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        in_common = getattr(memory, "shared", 0)
        own += memory.rss - in_common
        shared = max(shared, in_common)
    return own + shared


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
        return total_bytes(self._seen.values())
