"""Which items go through the model together: one bucket (one shape) per batch, full ones first, nobody forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What a batcher must know of an item."""

    @property
    def order(self) -> tuple[int, ...]:
        """Position in the stream: smaller is older."""


T = TypeVar("T", bound=Ordered)


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    since_s: float


class Batcher(Generic[T]):
    """Collects items by bucket and says when a batch should run. Not thread-safe: the pipeline's lock guards it.

    A full bucket runs at once. A partial one runs when no full one is there and it has waited ``linger_s``, or when
    ``flush`` says that waiting is pointless (the shard's tail, or producers starve for the bytes held here); after
    ``max_wait_s`` it runs ahead of full ones. Among the candidates the one with the oldest item is taken.

    Args:
        limit_of: largest batch of a bucket; asked each time, because it shrinks after an out-of-memory error.
    """

    def __init__(self, limit_of: Callable[[Hashable], int], *, linger_s: float = 0.05, max_wait_s: float = 1.0) -> None:
        self._limit_of = limit_of
        self._linger_s = linger_s
        self._max_wait_s = max_wait_s
        self._buckets: dict[Hashable, deque[_Waiting[T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, bucket: Hashable, item: T, now_s: float) -> None:
        """Put an item in its bucket."""
        self._buckets.setdefault(bucket, deque()).append(_Waiting(item, now_s))

    def pick(self, now_s: float, flush: Callable[[T], bool]) -> list[T]:
        """The next batch, or [] when it pays to wait. ``flush(oldest item of a bucket)``: don't wait for company."""
        overdue = self._oldest(lambda bucket, first: now_s - first.since_s >= self._max_wait_s)
        full = self._oldest(lambda bucket, first: len(self._buckets[bucket]) >= self._limit_of(bucket))
        due = self._oldest(lambda bucket, first: now_s - first.since_s >= self._linger_s or flush(first.item))
        bucket = next((b for b in (overdue, full, due) if b is not None), None)
        if bucket is None:
            return []
        waiting = self._buckets[bucket[0]]
        taken = [waiting.popleft().item for _ in range(min(len(waiting), max(1, self._limit_of(bucket[0]))))]
        if not waiting:
            del self._buckets[bucket[0]]
        return taken

    def next_due_s(self, now_s: float) -> float | None:
        """Seconds until a partial batch has lingered long enough; None when nothing waits."""
        if not self._buckets:
            return None
        return max(0.0, min(queue[0].since_s for queue in self._buckets.values()) + self._linger_s - now_s)

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out and return the items of a cancelled job."""
        dropped = []
        for bucket, queue in list(self._buckets.items()):
            dropped += [w.item for w in queue if unwanted(w.item)]
            kept = deque(w for w in queue if not unwanted(w.item))
            if kept:
                self._buckets[bucket] = kept
            else:
                del self._buckets[bucket]
        return dropped

    def _oldest(self, wanted: Callable[[Hashable, _Waiting[T]], bool]) -> tuple[Hashable] | None:
        """The bucket (in a tuple: None is a bucket too) with the oldest first item among the wanted ones."""
        candidates = [
            (queue[0].item.order, bucket) for bucket, queue in self._buckets.items() if wanted(bucket, queue[0])
        ]
        return (min(candidates, key=lambda pair: pair[0])[1],) if candidates else None
