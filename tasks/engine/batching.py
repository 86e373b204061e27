"""Which items go through the model together. Their company is fixed by their place in the job, never by timing.

The shape of a batch decides which kernels run, and so the last digits of every result in it. So that a shard's rows are
the same whenever it is computed, only items of one group may share a batch, and a group's items are taken in order:

* a value that makes many items (a video) is a group of its own: they come in order, so each full batch runs at once;
* neighbouring values (images) form groups of a fixed number, which run when nothing of them can still arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

Group = tuple[int, int]  # positions of a job's values: the first, and one past the last


class Ordered(Protocol):
    """What a batcher must know of an item."""

    @property
    def order(self) -> tuple[int, ...]:
        """Position in the stream: smaller is older."""

    @property
    def group(self) -> Group:
        """Among which values company may be looked for."""


T = TypeVar("T", bound=Ordered)
_Key = tuple[int, Group, Hashable]  # job, group, bucket


class Batcher(Generic[T]):
    """Collects items and says when a batch should run. Not thread-safe: the pipeline's lock guards it.

    Args:
        limit_of: largest batch of a bucket; the same at any time.
    """

    def __init__(self, limit_of: Callable[[Hashable], int]) -> None:
        self._limit_of = limit_of
        self._waiting: dict[_Key, list[T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, bucket: Hashable, item: T) -> None:
        """Put an item beside those of its group and bucket."""
        self._waiting.setdefault((item.order[0], item.group, bucket), []).append(item)

    def pick(self, is_complete: Callable[[T], bool]) -> list[T]:
        """The next batch, of those that can run the one with the oldest item; [] while all wait for company.

        Args:
            is_complete: of an item: nothing of its group can still arrive.
        """
        ready = [key for key, items in self._waiting.items() if self._can_run(key, items, is_complete)]
        if not ready:
            return []
        key = min(ready, key=lambda key: min(item.order for item in self._waiting[key]))
        items, limit = sorted(self._waiting.pop(key), key=lambda item: item.order), self._limit_of(key[2])
        if items[limit:]:
            self._waiting[key] = items[limit:]
        return items[:limit]

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out and return the items of a cancelled job."""
        dropped = [item for items in self._waiting.values() for item in items if unwanted(item)]
        kept = {key: [item for item in items if not unwanted(item)] for key, items in self._waiting.items()}
        self._waiting = {key: items for key, items in kept.items() if items}
        return dropped

    def _can_run(self, key: _Key, items: list[T], is_complete: Callable[[T], bool]) -> bool:
        _, (first, end), bucket = key
        limit, comes_in_order = self._limit_of(bucket), end - first == 1
        return limit == 1 or (comes_in_order and len(items) >= limit) or is_complete(items[0])
