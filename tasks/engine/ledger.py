"""What was tried: every attempt at every shard, who made it, when, and how it ended."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

AttemptEnd = Literal[
    "running", "committed", "already_committed", "survived", "error", "died", "hung", "bystander", "stopped"
]


@dataclass(slots=True)
class Attempt:
    """One try of one shard (``probe``: of some of its items, to find out which one kills)."""

    shard_id: str
    number: int
    attempt_id: str
    worker: str
    kind: Literal["process", "probe"]
    started_s: float
    ended_s: float | None = None
    end: AttemptEnd = "running"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long an attempt may take: ``floor_s + factor * work / rate``, by the median rate of what was done so far.

    Generous on purpose: a deadline is there to end a hang, not to punish a slow disk.
    """

    floor_s: float = 120.0
    factor: float = 10.0
    unknown_s: float = 1800.0  # before the first shard is done


class Rate:
    """Work per second and worker, from the last fifty attempts that succeeded."""

    def __init__(self, known: float | None = None) -> None:
        self._recent: deque[float] = deque(maxlen=50)
        self._known = known

    def learn(self, work: float, elapsed_s: float) -> None:
        """An attempt did so much in so long."""
        if work > 0 and elapsed_s > 0:
            self._recent.append(work / elapsed_s)

    @property
    def work_per_s(self) -> float | None:
        """The median; before anything is known, what calibration said, or None."""
        return statistics.median(self._recent) if self._recent else self._known

    def deadline_s(self, work: float, deadlines: Deadlines) -> float:
        """Seconds that so much work may take."""
        rate = self.work_per_s
        return deadlines.unknown_s if rate is None else deadlines.floor_s + deadlines.factor * work / rate
