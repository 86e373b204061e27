"""Bounded exponential backoff with jitter: the one place that waits and tries again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import StoreUnavailable, is_transient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try. The k-th wait is drawn from [d/2, d] with d = min(first * 2**k, ceiling).

    Half of each wait is random, so that many workers which failed together do not come back together.
    """

    attempts: int = 7
    first_delay_s: float = 0.1
    max_delay_s: float = 8.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after ``failures`` (1, 2, ...) failed attempts."""
        ceiling = min(self.first_delay_s * 2.0 ** (failures - 1), self.max_delay_s)
        return ceiling / 2 + random.random() * ceiling / 2


class RetryCounts:
    """How many attempts failed and were repeated, by operation; thread-safe, cheap, for run records and tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, operation: str) -> None:
        """Note one repeated attempt of ``operation``."""
        with self._lock:
            self._counts[operation] += 1

    def snapshot(self) -> dict[str, int]:
        """Repeats so far by operation name, e.g. ``{"get": 3}``."""
        with self._lock:
            return dict(self._counts)

    def total(self) -> int:
        """All repeats so far."""
        with self._lock:
            return sum(self._counts.values())


def with_retries(
    attempt: Callable[[], T],
    *,
    operation: str,
    policy: RetryPolicy | None = None,
    counts: RetryCounts | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
    hold: Callable[[BaseException], bool] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``attempt`` until it succeeds, fails for good, or the policy's attempts are used up.

    Args:
        attempt: does the work once; raises what :func:`infra.errors.is_transient` recognises when a repeat may help.
        operation: a short name for the counts.
        on_failure: told each transient failure before the wait (a conditional write must know that it may
            have happened).
        hold: asked after each failure once the attempts are used up: True for yet another one.

    Raises:
        StoreUnavailable: the last transient failure, saying how many attempts were made.
        Exception: anything that is not transient, at once.
    """
    policy = policy or RetryPolicy()
    failures = 0
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            failures += 1
            if on_failure is not None:
                on_failure(error)
            if failures >= policy.attempts and not (hold is not None and hold(error)):
                raise _exhausted(error, failures) from error
        if counts is not None:
            counts.add(operation)
        sleep(policy.delay_s(failures))


def _exhausted(error: BaseException, failures: int) -> StoreUnavailable:
    hint = getattr(error, "hint", "") or "The store may be overloaded or unreachable; run again later."
    return StoreUnavailable(f"{error} (gave up after {failures} attempts)", hint=hint)
