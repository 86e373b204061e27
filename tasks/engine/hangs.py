"""Which workers hang: judged by what their threads do, never by how long work of a size should take.

A step (one item in one stage) may take as long as it computes: on a loaded machine it gets little processor time, but
it wants it all the while. A step that sleeps without end hangs. The system tells the two apart by thread. Waiting for a
store is neither: requests have time limits of their own, and while a store is known to be silent no clock runs.

Nobody can tell a step that computes for long from one that computes for ever. It is compared with its like: other items
of the job in the same stage, whoever did them. Their times can only lengthen what it may take, never shorten it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.engine.heartbeat import Heartbeat, Mark, StepCost, Working
from tasks.engine.thread_usage import Usage


@dataclass(frozen=True, slots=True)
class HangLimits:
    """Seconds after which a worker is ended.

    Attributes:
        quiet_s: a step sleeps, and nothing computes for it.
        any_item_s: processor time that any item may take in one stage, however quick the others were.
        times_longest: an item may take so many times what the longest of the others took (more, if it is larger).
        unknown_s: processor time of an item while no other is through the stage.
        item_s: the same whatever others took, and whoever computes, if somebody who knows the job says so.
        elsewhere_s: a step sleeps while other threads or processes compute: that cannot be compared.
        store_s: a step waits for a store or a disk that lets it wait without an error, or the system does not tell
            what it does.
        idle_s: the worker has work, no thread of it is at any, and none computes.
        silent_s: no heartbeat came.
    """

    quiet_s: float = 45.0
    any_item_s: float = 90.0
    times_longest: float = 10.0
    unknown_s: float = 300.0
    item_s: float | None = None
    elsewhere_s: float = 900.0
    store_s: float = 900.0
    idle_s: float = 45.0
    silent_s: float = 300.0

    def computing_s(self, working: Working, cost: StepCost | None) -> float:
        """Processor time that a step may take. ``cost``: of the job's items that are through this stage."""
        num_items = max(1, len(working.marks))
        if self.item_s is not None:
            return self.item_s * num_items
        if cost is None:
            return self.unknown_s
        larger = max(1.0, working.size / cost.largest) if cost.largest > 0 else 1.0
        return max(self.any_item_s, self.times_longest * cost.longest_s * num_items * larger)


@dataclass(frozen=True, slots=True)
class Hang:
    """What a worker is stuck in: ``words`` such as "hung in infer for 45 s", the items of that thread, the stage."""

    words: str
    marks: tuple[Mark, ...] = ()
    stage: str = ""


_MOVED_S = 0.05  # of processor time: less is spent by a thread that only looks whether it may go on
_BUSY_SHARE = 1 / 90  # of a processor: less is spent by a thread that only keeps a process in touch with others


@dataclass(slots=True)
class _Step:
    """One thread at one step; times are those of heartbeats."""

    since_s: float
    begun_s: float
    begun_cpu_s: float | None
    moved_s: float  # when it last computed, or wanted to
    moved_cpu_s: float | None
    elsewhere_s: float = 0.0  # that others computed for it while it slept
    others: Mapping[int, Usage] | None = None  # what those had used when it last moved


class HangWatch:
    """One worker, seen at each of its heartbeats."""

    def __init__(self, limits: HangLimits, now_s: float) -> None:
        self._limits = limits
        self._steps: dict[int, _Step] = {}
        self._heard_s = self._active_s = now_s
        self._last: Heartbeat | None = None
        self._costs: Mapping[str, StepCost] = {}
        self._others: Mapping[int, Usage] | None = None  # as of a step, while there is none

    def look(self, beat: Heartbeat | None, now_s: float, costs: Mapping[str, StepCost] | None = None) -> Hang | None:
        """What the worker hangs in, if it does.

        Args:
            now_s: the time of any one clock.
            costs: by stage, of all that the job's workers have done.
        """
        self._costs = costs or {}
        if beat is not None and (self._last is None or beat.read_s > self._last.read_s):
            self._take(beat, now_s)
        if now_s - self._heard_s > self._limits.silent_s:
            return Hang(f"did not answer for {now_s - self._heard_s:.0f} s")
        if self._heard_s - self._active_s > self._limits.idle_s:
            return Hang(f"did nothing for {self._heard_s - self._active_s:.0f} s")
        busy = () if self._last is None else self._last.working
        stuck = [(hang, self._steps[w.thread]) for w in busy if (hang := self._hang_of(w, now_s)) is not None]
        return min(stuck, key=lambda pair: pair[1].moved_s)[0] if stuck else None

    def has_no_work(self, now_s: float) -> None:
        """The worker was given nothing: that it does nothing is right."""
        self._heard_s = self._active_s = now_s
        self._last = None
        self._steps.clear()

    def _take(self, beat: Heartbeat, now_s: float) -> None:
        before, self._last, self._heard_s = self._last, beat, now_s
        is_active = beat.working or beat.outage or before is None or before.items_done != beat.items_done
        if is_active or self._compute(self._others, beat):
            self._active_s, self._others = now_s, beat.elsewhere
        self._others = self._others or beat.elsewhere
        known, self._steps = self._steps, {}
        for working in beat.working:
            step = known.get(working.thread)
            if step is None or step.since_s != working.since_s:
                step = _Step(working.since_s, now_s, working.cpu_s, now_s, working.cpu_s)
            elif beat.outage:
                step.begun_s = step.moved_s = now_s
            elif _moves(working, step):
                step.moved_s, step.moved_cpu_s, step.others = now_s, working.cpu_s, beat.elsewhere
            elif self._compute(step.others, beat):
                step.elsewhere_s += now_s - step.moved_s
                step.moved_s, step.others = now_s, beat.elsewhere
            step.others = step.others or beat.elsewhere
            self._steps[working.thread] = step

    def _hang_of(self, working: Working, now_s: float) -> Hang | None:
        step, limits = self._steps[working.thread], self._limits
        taken_s, quiet_s = now_s - step.begun_s, now_s - step.moved_s
        if working.in_store or working.state == "D":
            return _hang(working, "waited for a store or disk in", taken_s) if taken_s > limits.store_s else None
        if working.cpu_s is None or step.begun_cpu_s is None:
            return _hang(working, "hung in", taken_s) if taken_s > limits.store_s else None
        computed_s, cost = working.cpu_s - step.begun_cpu_s, self._costs.get(working.stage)
        if computed_s > limits.computing_s(working, cost):
            return _endless(working, computed_s, cost)
        if step.elsewhere_s > (limits.elsewhere_s if limits.item_s is None else limits.computing_s(working, cost)):
            return _hang(working, "waited for other threads or processes in", step.elsewhere_s)
        if quiet_s > limits.quiet_s and not self._somebody_computes(step, now_s):
            return _hang(working, "hung in", quiet_s)
        return None

    def _compute(self, before: Mapping[int, Usage] | None, beat: Heartbeat) -> bool:
        """Whether a thread at no step, or a process below, has computed since: on a crowded machine it gets little."""
        least_s = _BUSY_SHARE * self._limits.quiet_s
        return any(
            used.cpu_s is not None and known.cpu_s is not None and used.cpu_s - known.cpu_s > least_s
            for number, used in (beat.elsewhere or {}).items()
            if (known := (before or {}).get(number)) is not None
        )

    def _somebody_computes(self, quiet: _Step, now_s: float) -> bool:
        """Whether another thread has been at one step since: it may hold what this one waits for."""
        return any(
            step is not quiet and step.begun_s <= quiet.moved_s and now_s - step.moved_s < self._limits.quiet_s / 2
            for step in self._steps.values()
        )


def _moves(working: Working, step: _Step) -> bool:
    if working.in_store or working.state in ("R", "D"):
        return True
    if working.cpu_s is None or step.moved_cpu_s is None:
        return False
    return working.cpu_s - step.moved_cpu_s > _MOVED_S


def _endless(working: Working, computed_s: float, cost: StepCost | None) -> Hang:
    others = "no item was through it before" if cost is None else f"others took {cost.longest_s:.1f} s at most"
    words = f"computed in {working.stage} for {computed_s:.0f} s ({others}; --item-minutes sets another limit)"
    return Hang(words, working.marks, working.stage)


def _hang(working: Working, what: str, seconds: float) -> Hang:
    return Hang(f"{what} {working.stage} for {seconds:.0f} s", working.marks, working.stage)
