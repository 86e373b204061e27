"""Bounded backoff: what passes is repeated, what does not is raised at once, waits grow and are spread."""

from __future__ import annotations

import pytest

from infra.errors import AccessDenied, StoreUnavailable, is_transient
from infra.retry import RetryCounts, RetryPolicy, with_retries


class _Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_passing_failures_are_repeated_and_counted() -> None:
    counts, waits, told = RetryCounts(), [], []
    flaky = _Flaky(StoreUnavailable("a"), TimeoutError("b"), ConnectionResetError("c"))
    assert with_retries(flaky, operation="get", counts=counts, sleep=waits.append, on_failure=told.append) == "done"
    assert (flaky.calls, len(waits), len(told)) == (4, 3, 3)
    assert counts.snapshot() == {"get": 3}
    assert counts.total() == 3


def test_failures_that_do_not_pass_are_raised_at_once() -> None:
    flaky = _Flaky(AccessDenied("no"))
    with pytest.raises(AccessDenied):
        with_retries(flaky, operation="get", sleep=lambda s: pytest.fail("waited"))
    assert flaky.calls == 1


def test_attempts_are_bounded_and_the_last_error_tells() -> None:
    waits: list[float] = []
    flaky = _Flaky(*[StoreUnavailable("the server answered 503", hint="wait") for _ in range(9)])
    with pytest.raises(StoreUnavailable, match=r"503 \(gave up after 3 attempts\)") as caught:
        with_retries(flaky, operation="get", policy=RetryPolicy(attempts=3), sleep=waits.append)
    assert (flaky.calls, len(waits)) == (3, 2)
    assert caught.value.hint == "wait"
    assert is_transient(caught.value)


def test_waits_double_up_to_the_ceiling_and_are_spread() -> None:
    policy = RetryPolicy(first_delay_s=0.1, max_delay_s=1.0)
    for failures, ceiling_s in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (9, 1.0)):
        drawn = [policy.delay_s(failures) for _ in range(200)]
        assert ceiling_s / 2 <= min(drawn)
        assert max(drawn) <= ceiling_s
        assert max(drawn) - min(drawn) > ceiling_s / 4
