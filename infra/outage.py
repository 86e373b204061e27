"""A store that does not answer at all, told apart from one object that cannot be read, and waited for with patience.

The retries of one request are over in seconds. What comes then depends on whose trouble it is. While the store serves
other objects, the failure belongs to this one, and the caller may write it down as such. While it serves none, every
request waits, for minutes, and whoever shows progress is told since when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.errors import StoreOutage

TIMES_OTHERS_SERVED = 3  # in a row, each right after the object failed: then the trouble is the object's own


@dataclass(frozen=True, slots=True)
class Outage:
    """``since`` is when the first request got no answer (UTC); ``error`` is what the last one got instead."""

    uri: str
    since: datetime
    error: str

    def __str__(self) -> str:
        return f"the store {self.uri} does not answer since {self.since:%H:%M:%S} UTC ({self.error})"


def _nobody(outage: Outage | None) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an outage of the whole store is waited for, and who is told.

    Once an outage has lasted ``tell_after_s``, every failed attempt hands it to ``told``; when the store answers again,
    ``told`` gets None. It is called from any thread, one at a time, must be quick and must not use the store.
    """

    seconds: float
    told: Callable[[Outage | None], None] = _nobody
    tell_after_s: float = 3.0


class OutageWatch:
    """What one store has answered lately. Thread-safe.

    Args:
        uri: the store, for messages.
        serves_others: asks the store for something that it has served before; False if that fails in passing, too, or
            if nothing is known that it has served.
    """

    def __init__(self, uri: str, patience: Patience, serves_others: Callable[[], bool]) -> None:
        self._uri = uri
        self._patience = patience
        self._serves_others = serves_others
        self._lock = threading.Lock()
        self._silent_since: tuple[float, datetime] | None = None
        self._is_told = False

    def request(self, *, reads_object: bool) -> RequestWatch:
        """Watch one request. ``reads_object``: it reads one object, which may be unreadable while others are served."""
        return RequestWatch(self, self._patience.seconds, self._serves_others if reads_object else None)

    def answered(self) -> None:
        """A request was answered, be it with a refusal."""
        if self._silent_since is None:  # almost always, and without a lock
            return
        with self._lock:
            self._silent_since = None
            if self._is_told:
                self._is_told = False
                self._patience.told(None)

    def failed(self, error: BaseException) -> None:
        """A request failed in a way that passes."""
        with self._lock:
            if self._silent_since is None:
                self._silent_since = (time.monotonic(), datetime.now(UTC))
            start_s, since = self._silent_since
            if time.monotonic() - start_s >= self._patience.tell_after_s:
                self._is_told = True
                self._patience.told(Outage(self._uri, since, str(error)))

    def outage(self, error: BaseException, waited_s: float) -> StoreOutage:
        """The error that ends the waiting."""
        return StoreOutage(
            f"{error}; the store {self._uri} has not answered for {waited_s / 60:.1f} minutes",
            hint="Run the same command again when the store is back: it goes on where it stopped.",
        )


class RequestWatch:
    """One request, all its attempts."""

    def __init__(self, watch: OutageWatch, patience_s: float, serves_others: Callable[[], bool] | None) -> None:
        self._watch = watch
        self._patience_s = patience_s
        self._serves_others = serves_others
        self._started_s = time.monotonic()
        self._times_others_served = 0

    def failed(self, error: BaseException) -> None:
        """An attempt failed in a way that passes."""
        self._watch.failed(error)

    def is_worth_waiting(self, error: BaseException) -> bool:
        """Whether to repeat the request beyond its retries; False if the trouble is its object's own.

        Raises:
            StoreOutage: it has failed for longer than the patience.
        """
        if self._serves_others is not None and self._serves_others():
            self._watch.answered()
            self._times_others_served += 1
            # A store that has just come back serves others, too: the object gets another chance before it is to blame.
            if self._times_others_served >= TIMES_OTHERS_SERVED:
                return False
        else:
            self._times_others_served = 0
        waited_s = time.monotonic() - self._started_s
        if waited_s >= self._patience_s:
            raise self._watch.outage(error, waited_s) from error
        return True
