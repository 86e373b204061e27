"""What was tried: every attempt at every shard, who made it, when, and how it ended."""

from __future__ import annotations

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
