"""A worker is ended for what its threads do, never for how long work should take: slow is not stuck."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tasks.engine.hangs import HangLimits, HangWatch
from tasks.engine.heartbeat import Heartbeat, Mark, StepCost, Working
from tasks.engine.thread_usage import Usage

LIMITS = HangLimits(quiet_s=45, any_item_s=90, unknown_s=300, store_s=900, idle_s=45, silent_s=300)


def working(thread: int = 1, since_s: float = 0.0, **more: Any) -> Working:
    defaults = {"cpu_s": 1.0, "state": "S", "in_store": False}
    return Working("infer", (Mark("shard", 3, 0),), since_s, thread, **(defaults | more))


def ended_after(
    seconds: float,
    at: Any,
    *,
    outage_until: float = 0.0,
    items: Any = lambda now: 0,
    elsewhere: Any = lambda now: None,
    limits: HangLimits = LIMITS,
    cost: StepCost | None = None,
) -> float | None:
    """When a worker is found to hang whose threads are ``at(second)``; looked at each second."""
    watch, costs = HangWatch(limits, 0.0), {} if cost is None else {"infer": cost}
    for now in range(1, int(seconds) + 1):
        outage = "the store is gone" if now <= outage_until else ""
        beat = Heartbeat(1, items(now), 0.0, tuple(at(now)), outage, float(now), elsewhere=elsewhere(now))
        hang = watch.look(beat, float(now), costs)
        if hang is not None:
            assert not at(now) or hang.marks == (Mark("shard", 3, 0),)
            return float(now)
    return None


def test_a_step_that_sleeps_is_ended_within_a_minute() -> None:
    assert 45 < (ended_after(100, lambda now: [working()]) or 999) < 60


def test_a_thread_that_polls_sleeps_too() -> None:
    assert (ended_after(200, lambda now: [working(cpu_s=1 + now * 2e-4)]) or 999) < 60


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(lambda now: working(state="R"), id="no processor time, though it wants some"),
        pytest.param(lambda now: working(cpu_s=0.02 * now), id="two hundredths of a processor"),
        pytest.param(lambda now: working(in_store=True), id="waits for a store"),
        pytest.param(lambda now: working(state="D"), id="waits for a disk"),
    ],
)
def test_an_item_of_ten_minutes_on_a_loaded_machine_is_left_alone(at: Any) -> None:
    assert ended_after(600, lambda now: [at(now)]) is None


def computing(now: int, **more: Any) -> list[Working]:
    return [working(cpu_s=float(now), state="R", **more)]


def test_an_endless_loop_ends_half_a_minute_after_what_any_item_may_take() -> None:
    """A minute is granted to any item, however quick the others, and half as much again for a crowded machine."""
    assert ended_after(2000, computing, cost=StepCost(0.2, 0.0)) == 92
    on_a_loaded_machine = ended_after(2000, lambda now: computing(now // 10), cost=StepCost(0.2, 0.0))
    assert on_a_loaded_machine is not None and on_a_loaded_machine > 900


def test_what_others_took_only_lengthens_what_an_item_may_take() -> None:
    assert ended_after(2000, computing, cost=StepCost(30.0, 0.0)) == 302
    assert ended_after(2000, lambda now: computing(now, size=4e6), cost=StepCost(30.0, 1e6)) == 1202
    assert ended_after(2000, lambda now: computing(now, size=1e3), cost=StepCost(30.0, 1e6)) == 302
    batch = (Mark("shard", 3, 0), Mark("shard", 4, 0))
    watch = HangWatch(LIMITS, 0.0)
    for now in range(1, 601):
        together = (Working("infer", batch, 0.0, 1, cpu_s=float(now), state="R"),)
        beat = Heartbeat(1, 0, 0.0, together, "", float(now))
        assert watch.look(beat, float(now), {"infer": StepCost(30.0, 0.0)}) is None


def test_before_any_item_is_through_an_endless_loop_has_five_minutes() -> None:
    assert ended_after(2000, computing) == 302


def test_who_knows_the_job_sets_the_limit() -> None:
    asked = replace(LIMITS, item_s=20.0)
    assert ended_after(2000, computing, limits=asked, cost=StepCost(30.0, 0.0)) == 22
    assert ended_after(2000, computing, limits=replace(LIMITS, item_s=1500.0)) == 1502


def test_a_store_without_time_limits_ends_too() -> None:
    assert ended_after(2000, lambda now: [working(in_store=True)]) == 902


def test_a_step_whose_work_other_threads_or_processes_do_is_left_alone_for_a_quarter_of_an_hour() -> None:
    """A thread that only keeps the process in touch with others does no work, though it often waits for its turn."""
    busy, starved = (lambda now: {7: Usage(0.9 * now, "R")}), (lambda now: {7: Usage(0.02 * now, "S")})
    for elsewhere in (busy, starved):
        ended = ended_after(2000, lambda now: [working()], elsewhere=elsewhere, cost=StepCost(0.2, 0.0))
        assert ended is not None and 900 < ended < 930
    in_touch = ended_after(2000, lambda now: [working()], elsewhere=lambda now: {7: Usage(0.005 * now, "R")})
    assert in_touch is not None and in_touch < 60


def test_a_new_step_begins_anew_however_many_there_are() -> None:
    assert ended_after(3000, lambda now: [working(since_s=now // 40)]) is None


def test_while_the_store_is_silent_no_clock_runs() -> None:
    ended = ended_after(800, lambda now: [working()], outage_until=600)
    assert ended is not None and 645 <= ended < 660
    assert ended_after(800, lambda now: [working(in_store=True)], outage_until=700) is None


def test_a_thread_is_not_blamed_for_waiting_while_another_computes_for_long() -> None:
    """It may hold what the first one waits for: a lock, or the interpreter."""
    busy = [working(1), working(2, state="R")]
    assert ended_after(300, lambda now: busy) is None
    assert (ended_after(300, lambda now: [working(1), working(2, since_s=now, state="R")]) or 999) < 60


def test_where_the_system_tells_nothing_only_time_counts() -> None:
    assert ended_after(2000, lambda now: [working(cpu_s=None, state="")]) == 902


def test_a_worker_at_nothing_or_without_an_answer_is_ended() -> None:
    assert ended_after(300, lambda now: []) == 47  # the first look says that there is nothing
    assert ended_after(300, lambda now: [], elsewhere=lambda now: {7: Usage(0.2 * now, "S")}) is None
    assert ended_after(300, lambda now: [], items=lambda now: now) is None
    watch = HangWatch(LIMITS, 0.0)
    assert watch.look(None, 299.0) is None
    found = watch.look(None, 301.0)
    assert found is not None and "did not answer" in found.words
