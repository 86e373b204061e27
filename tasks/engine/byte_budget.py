"""Byte budgets: what may be in flight in a worker, and on one edge of its pipeline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tasks.records import ItemFailure

LARGE_BYTES = 64 << 20  # taken by one image: what it leaves behind is given back at once


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes by what they are for; together they are what a worker may have in flight.

    Args:
        total_bytes: of all.
        is_limit: whether an image that does not fit is a failed row; else it goes alone, and takes what it takes.
    """

    total_bytes: int
    is_limit: bool

    @property
    def small_bytes(self) -> int:
        """For files that were fetched; for raw results; for rows."""
        return self.total_bytes // 8

    @property
    def decoding_bytes(self) -> int:
        """For decoding, and for pixels on their way to the model."""
        return self.total_bytes - 3 * self.small_bytes

    def refusal(self, file_bytes: int, wanted_bytes: int) -> ItemFailure | None:
        """Why an image is not decoded here, if it isn't: sizes of its file, and of what decoding takes beside it."""
        fits = file_bytes <= self.small_bytes and wanted_bytes <= self.decoding_bytes
        if fits or not self.is_limit:
            return None
        needed = max(file_bytes * 8, -(-wanted_bytes * 8 // 5))
        return ItemFailure(
            "decode",
            "TooLargeForMemory",
            f"the file has {_mib(file_bytes)} and decoding it takes {_mib(wanted_bytes)}: "
            f"--memory-bytes {self.total_bytes} is too little, {needed} is enough (with --retry-failed)",
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


class Tally:
    """Bytes on all edges of a pipeline, now and at most so far. Guarded by the pipeline's lock."""

    def __init__(self) -> None:
        self.used_bytes = self.peak_bytes = 0

    def add(self, amount_bytes: int) -> None:
        """Count bytes; fewer if negative."""
        self.used_bytes += amount_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)


class ByteBudget:
    """A semaphore that counts bytes, first come, first served; an amount above the limit passes alone.

    All methods take the lock that was given, so that a pipeline can look at several edges at once.

    Args:
        limit_bytes: how many bytes may be out at once.
        lock: the pipeline's one lock (re-entrant).
        tally: counts what is out on all edges.

    Attributes:
        idle: how many of the bytes that are out nobody works on, because they wait for more to come; where that is all
            of them, the next amount passes. Whoever changes the answer calls :meth:`wake`.
        expected: what the next output will take, learned from those that were settled.
    """

    def __init__(self, limit_bytes: int, lock: threading.RLock, tally: Tally) -> None:
        if limit_bytes < 1:
            raise ValueError(f"a byte budget must be positive, got {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.expected = SizeEstimate(limit_bytes)
        self._tally = tally
        self._changed = threading.Condition(lock)
        self._queue: deque[object] = deque()
        self.idle: Callable[[], int] = int

    def acquire(self, amount_bytes: int, cancelled: Callable[[], bool] = bool) -> bool:
        """Wait until ``amount_bytes`` fit and take them; False (nothing taken) once ``cancelled()`` says so.

        Whoever makes ``cancelled`` true calls :meth:`wake`.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or not self._fits(amount_bytes):
                    if cancelled():
                        return False
                    self._changed.wait()
                if cancelled():
                    return False
                self._add(amount_bytes)
                return True
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def settle(self, reserved_bytes: int, actual_bytes: int) -> None:
        """Replace an estimate by the truth, and learn from it. Never waits: the bytes exist already."""
        with self._changed:
            self.expected.learn(actual_bytes)
            self.keep(actual_bytes - reserved_bytes)

    def keep(self, amount_bytes: int) -> None:
        """Count bytes that exist already, without waiting; give some back if negative."""
        with self._changed:
            self._add(amount_bytes)
            if amount_bytes < 0:
                self._changed.notify_all()

    def release(self, amount_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            if amount_bytes > self.used_bytes:
                raise RuntimeError(f"{amount_bytes} bytes given back but only {self.used_bytes} are out")
            self._add(-amount_bytes)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let every waiter look at ``cancelled`` again."""
        with self._changed:
            self._changed.notify_all()

    def _fits(self, amount_bytes: int) -> bool:
        return self.used_bytes == self.idle() or self.used_bytes + amount_bytes <= self.limit_bytes

    def _add(self, amount_bytes: int) -> None:
        self.used_bytes += amount_bytes
        self._tally.add(amount_bytes)


class SizeEstimate:
    """How large the next thing will be, learned from those before: rises at once, sinks slowly.

    Reserving before producing keeps the bound honest: without it every producer could hold one uncounted output.

    Args:
        unknown_bytes: the answer before anything was seen; the whole budget makes the first one go alone.
    """

    def __init__(self, unknown_bytes: int) -> None:
        self._unknown_bytes = unknown_bytes
        self._bytes: float | None = None

    def __call__(self, count: int = 1) -> int:
        """Bytes to expect of each of the next ``count`` things."""
        return self._unknown_bytes // count if self._bytes is None else int(self._bytes)

    def learn(self, actual_bytes: int) -> None:
        """Take a true size into account."""
        before = actual_bytes if self._bytes is None else self._bytes
        self._bytes = float(max(actual_bytes, 0.9 * before + 0.1 * actual_bytes))
