"""What a pipeline is made of: its stages, and where their time went."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.engine.batches import Group


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, run by ``threads`` threads: ``work(value)`` returns one output, or yields any number if ``many``.

    Args:
        size_of: bytes that an output holds until the next stage is through with it.
        expect: bytes that making the (first) output takes, which its size replaces once it is there. What is not
            known (None) is learned from the outputs so far.
        budget_bytes: limit of what lies between this stage and the next (the last stage: of results kept).
    """

    name: str
    work: Callable[[Any], Any]
    size_of: Callable[[Any], int]
    budget_bytes: int
    threads: int = 1
    many: bool = False
    expect: Callable[[Any], int | None] | None = None


@dataclass(frozen=True, slots=True)
class BatchStage:
    """A stage that one single thread runs on batches: ``work(values)`` returns one output per value, in order.

    Args:
        bucket_of: what may share a batch; None passes the value by, straight to the next stage.
        limit_of: largest batch of a bucket.
        group_of: position of a submitted value and the value -> among which values its outputs may find company, see
            :mod:`tasks.engine.batches`.
    """

    name: str
    work: Callable[[list[Any]], Sequence[Any]]
    size_of: Callable[[Any], int]
    budget_bytes: int
    bucket_of: Callable[[Any], Hashable | None]
    limit_of: Callable[[Hashable], int]
    group_of: Callable[[int, Any], Group]
    threads: int = field(default=1, init=False)


@dataclass(slots=True)
class StageClock:
    """Where the time of one stage's threads went, in thread-seconds."""

    busy_s: float = 0.0  # in its work
    starved_s: float = 0.0  # no input, while some job was running
    blocked_s: float = 0.0  # output had no room: a later stage is slower
    outputs: int = 0
