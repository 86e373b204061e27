"""The circuit breaker: too many failures in a row mean that credentials or the model are broken, not the data."""

from __future__ import annotations

import threading
from collections import deque

from infra.errors import CircuitOpen
from tasks.records import ItemFailure

_PATIENCE = 10  # with failures that lie in the data
_DATA_ERRORS = {"ObjectGone", "ObjectChanged"}


class FailureStreak:
    """Counts failed items in a row over all shards of a worker. Thread-safe.

    A folder of broken files is data, and a job that stopped there would stop there every night; so undecodable and
    vanished objects may fail ten times as often in a row as what points at credentials, network or model.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._systemic = 0
        self._data = 0
        self._sample: deque[str] = deque(maxlen=5)
        self._lock = threading.Lock()

    def note(self, uri: str, failure: ItemFailure | None) -> None:
        """Take one item into account.

        Raises:
            CircuitOpen: when it was one too many, with a sample of the last errors.
        """
        with self._lock:
            if failure is None:
                self._systemic = self._data = 0
                return
            self._sample.append(f"{uri}: {failure.stage}: {failure.error_type}: {failure.error}")
            if failure.stage in ("decode", "inventory") or failure.error_type in _DATA_ERRORS:
                self._data += 1
            else:
                self._systemic += 1
            if self._systemic >= self._limit or self._data >= _PATIENCE * self._limit:
                raise circuit_open(max(self._systemic, self._data), "items", list(self._sample))


def circuit_open(count: int, what: str, sample: list[str]) -> CircuitOpen:
    """The error that stops a run, with what was seen."""
    lines = "".join(f"\n  {line[:300]}" for line in sample)
    return CircuitOpen(
        f"{count} {what} failed in a row; the run stops and its plan stays open:{lines}",
        hint="Mend credentials, network or model and run the same command again: it goes on where it stopped. "
        "If the data really is that bad, raise --max-consecutive-failures.",
    )
