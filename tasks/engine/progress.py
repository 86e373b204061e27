"""How far a run is: from commits, receipts and heartbeats only, so that it is right a moment after a restart, too."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run.

    Attributes:
        shards_total: of the plan; ``shards_done`` includes those that were committed before this run.
        shards_before: committed before this run began.
        items_done: rows committed in this run, and items that have passed the model in shards under way.
        rows_per_s: over the last minute; ``rows_per_s_overall`` since the first worker was ready.
        eta_s: seconds to the end at the overall speed; None until something is done.
        failures: failed and quarantined rows of this run by kind.
        workers: that are ready; ``deaths`` counts those lost, hung ones included.
        outage: in words, while a store does not answer.
        idle_share: part of the workers' time in which the model waited for input or for room, so far.
    """

    shards_total: int
    shards_done: int
    shards_before: int
    items_done: int
    rows_per_s: float
    rows_per_s_overall: float
    eta_s: float | None
    elapsed_s: float
    failures: dict[str, int] = field(default_factory=dict)
    workers: int = 0
    shards_in_flight: int = 0
    deaths: int = 0
    quarantined: int = 0
    idle_share: float = 0.0
    outage: str = ""
    stages: dict[str, int] = field(default_factory=dict)  # busy threads by stage, now


class ProgressMeter:
    """Takes in what happens and says where the run is. Times are seconds of any one clock.

    Args:
        shards_total: of the plan.
        shards_before: committed when this run began.
    """

    def __init__(self, shards_total: int, shards_before: int, now_s: float) -> None:
        self._total, self._before = shards_total, shards_before
        self._begin_s = now_s
        self._ready_s: float | None = None
        self._shards = self._rows = self._deaths = self._quarantined = 0
        self._failures: Counter[str] = Counter()
        self._marks: deque[tuple[float, int]] = deque()
        self._under_way = 0

    def worker_ready(self, now_s: float) -> None:
        """Speed is counted from the first of these on."""
        if self._ready_s is None:
            self._ready_s = now_s

    def shard_done(self, rows: int, failures: dict[str, int], quarantined: int) -> None:
        """A receipt came in."""
        self._shards += 1
        self._rows += rows
        self._quarantined += quarantined
        self._failures.update(failures)

    def worker_lost(self) -> None:
        """A worker died, or was killed because it hung."""
        self._deaths += 1

    def under_way(self, items: int) -> None:
        """Items in shards that are not committed yet have passed the model, as heartbeats say."""
        self._under_way = items

    def rows_per_s(self, now_s: float) -> float:
        """Of what is done, since the first worker was ready: the rate of the bar, of the summary and of the record."""
        since = now_s if self._ready_s is None else self._ready_s
        return (self._rows + self._under_way) / (now_s - since) if now_s > since else 0.0

    def read(
        self,
        now_s: float,
        *,
        workers: int,
        in_flight: int,
        idle_share: float,
        stages: dict[str, int],
        outage: str = "",
    ) -> Progress:
        """The state of things."""
        items = self._rows + self._under_way
        self._marks.append((now_s, items))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.popleft()
        overall = self.rows_per_s(now_s)
        return Progress(
            shards_total=self._total,
            shards_done=self._before + self._shards,
            shards_before=self._before,
            items_done=items,
            rows_per_s=self._recent(now_s, overall),
            rows_per_s_overall=overall,
            eta_s=self._eta_s(items, overall),
            elapsed_s=now_s - self._begin_s,
            failures=dict(self._failures),
            workers=workers,
            shards_in_flight=in_flight,
            deaths=self._deaths,
            quarantined=self._quarantined,
            idle_share=idle_share,
            outage=outage,
            stages=stages,
        )

    def _recent(self, now_s: float, overall: float) -> float:
        then_s, items = self._marks[0]
        return max(0.0, (self._marks[-1][1] - items) / (now_s - then_s)) if now_s - then_s >= 1.0 else overall

    def _eta_s(self, items: int, overall: float) -> float | None:
        """By items: what is left, in shards of the mean size seen, at the overall speed."""
        left = self._total - self._before - self._shards
        if left <= 0:
            return 0.0
        if self._shards == 0 or overall <= 0:
            return None
        return max(0.0, left * self._rows / self._shards - self._under_way) / overall
