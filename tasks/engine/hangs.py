"""Which workers hang: judged by what their threads do, never by how long work of a size should take.

A step (one item in one stage) may take as long as it computes: on a loaded machine it gets little processor time, but
it wants it all the while. A step that sleeps without end hangs. The system tells the two apart by thread. Waiting for a
store is neither: requests have time limits of their own, and while a store is known to be silent no clock runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.engine.heartbeat import Heartbeat, Mark, Working


@dataclass(frozen=True, slots=True)
class HangLimits:
    """Seconds after which a worker is ended.

    Attributes:
        quiet_s: a step sleeps and computes nothing.
        computing_s: processor time of one step: an endless loop. (Where the system does not tell it: time.)
        store_s: a step waits for a store or a disk that lets it wait without an error.
        idle_s: the worker has work, and no thread of it is at any.
        silent_s: no heartbeat came.
    """

    quiet_s: float = 45.0
    computing_s: float = 900.0
    store_s: float = 900.0
    idle_s: float = 120.0
    silent_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Hang:
    """What a worker is stuck in: ``words`` such as "hung in infer for 45 s", the items of that thread, the stage."""

    words: str
    marks: tuple[Mark, ...] = ()
    stage: str = ""


_MOVED_S = 0.05  # of processor time: less is spent by a thread that only looks whether it may go on


@dataclass(slots=True)
class _Step:
    """One thread at one step; times are those of heartbeats."""

    since_s: float
    begun_s: float
    begun_cpu_s: float | None
    moved_s: float  # when it last computed, or wanted to
    moved_cpu_s: float | None


class HangWatch:
    """One worker, seen at each of its heartbeats."""

    def __init__(self, limits: HangLimits, now_s: float) -> None:
        self._limits = limits
        self._steps: dict[int, _Step] = {}
        self._heard_s = self._active_s = now_s
        self._last: Heartbeat | None = None

    def look(self, beat: Heartbeat | None, now_s: float) -> Hang | None:
        """What the worker hangs in, if it does. ``now_s`` is the time of any one clock."""
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
        if beat.working or beat.outage or before is None or before.items_done != beat.items_done:
            self._active_s = now_s
        known, self._steps = self._steps, {}
        for working in beat.working:
            step = known.get(working.thread)
            if step is None or step.since_s != working.since_s:
                step = _Step(working.since_s, now_s, working.cpu_s, now_s, working.cpu_s)
            elif beat.outage:
                step.begun_s = step.moved_s = now_s
            elif _moves(working, step):
                step.moved_s, step.moved_cpu_s = now_s, working.cpu_s
            self._steps[working.thread] = step

    def _hang_of(self, working: Working, now_s: float) -> Hang | None:
        step, limits = self._steps[working.thread], self._limits
        taken_s, quiet_s = now_s - step.begun_s, now_s - step.moved_s
        if working.in_store or working.state == "D":
            return _hang(working, "waited for a store or disk in", taken_s) if taken_s > limits.store_s else None
        if working.cpu_s is None or step.begun_cpu_s is None:
            return _hang(working, "hung in", taken_s) if taken_s > limits.computing_s else None
        if working.cpu_s - step.begun_cpu_s > limits.computing_s:
            return _hang(working, "computed without end in", taken_s)
        if quiet_s > limits.quiet_s and not self._somebody_computes(step, now_s):
            return _hang(working, "hung in", quiet_s)
        return None

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


def _hang(working: Working, what: str, seconds: float) -> Hang:
    return Hang(f"{what} {working.stage} for {seconds:.0f} s", working.marks, working.stage)
