"""Which items go through the model together, and what comes of it whatever the model throws.

Their company is fixed by their place in the job, never by timing.

The shape of a batch decides which kernels run, and so the last digits of every result in it. So that a shard's rows are
the same whenever it is computed, only items of one group may share a batch, and a group's items are taken in order:

* a value that makes many items (a video) is a group of its own: they come in order, so each full batch runs at once;
* neighbouring values (images) form groups of a fixed number, which run when nothing of them can still arrive;
* where memory does not suffice, a batch is halved, and so again the same items keep company. A bad item fails alone.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_LOST_DEVICE = ("cuda error", "device-side assert", "illegal memory access", "cublas_status", "cudnn_status_internal")

Group = tuple[int, int]  # positions of a job's values: the first, and one past the last


class Ordered(Protocol):
    """What a batcher must know of an item."""

    @property
    def order(self) -> tuple[int, ...]:
        """Position in the stream: smaller is older."""

    @property
    def group(self) -> Group:
        """Among which values company may be looked for."""

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""


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

    def waiting_bytes(self) -> int:
        """What those hold that wait for company."""
        return sum(item.size_bytes for items in self._waiting.values() for item in items)

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


class DeviceLostError(Exception):
    """Raised when the device's context is broken for good: only a new process helps."""


class BatchLimits:
    """The largest batch that may be tried, per bucket (shape): the wish, after out-of-memory errors a half of it, ...

    Only these sizes are remembered, whatever size failed, and batches are cut by halves. So where one size does not fit
    all items keep the same company, whether that was found out just now or earlier: their last digits depend on it.
    """

    def __init__(self, wanted: int) -> None:
        if wanted < 1:
            raise ValueError(f"a batch holds one item or more, got {wanted}")
        self._wanted = wanted
        self._ceilings: dict[Hashable, int] = {}
        self._largest = 0
        self._lock = threading.Lock()

    def __call__(self, bucket: Hashable) -> int:
        """Items that may go together in this bucket."""
        return self._ceilings.get(bucket, self._wanted)

    def shrink(self, bucket: Hashable, failed: int) -> None:
        """A batch of ``failed`` items did not fit."""
        size = self._wanted
        while size >= failed and size > 1:
            size = (size + 1) // 2
        with self._lock:
            self._ceilings[bucket] = min(self(bucket), size)

    def note(self, fitted: int) -> None:
        """A batch of so many items went through."""
        self._largest = max(self._largest, fitted)

    @property
    def largest(self) -> int:
        """The largest batch that went through so far."""
        return self._largest


def forward(
    model: Callable[[list[Any]], Sequence[Any]], values: list[Any], bucket: Hashable, limits: BatchLimits
) -> list[Any]:
    """One output per value, in order; an exception stands where a value has none.

    Out of memory: the cache is freed, the same values go again in two halves, and the bucket's limit stays below; a
    single value that does not fit gets the error. Any other error of a batch: its values go one by one, so that only
    the guilty one gets it.

    Raises:
        DeviceLostError: when the device's context is broken.
    """
    if len(values) > max(1, limits(bucket)):
        half = (len(values) + 1) // 2
        return forward(model, values[:half], bucket, limits) + forward(model, values[half:], bucket, limits)
    try:
        outputs = list(model(values))
        if len(outputs) != len(values):
            raise RuntimeError(f"the model gave {len(outputs)} results for {len(values)} images")
        limits.note(len(values))
        return outputs
    except Exception as error:  # noqa: BLE001 - whatever a model throws becomes the row of an item
        caught = _without_frames(error)
    if is_out_of_memory(caught):
        free_memory()
        if len(values) > 1:
            limits.shrink(bucket, len(values))
            return forward(model, values, bucket, limits)
    elif is_device_lost(caught):
        raise DeviceLostError(f"{type(caught).__name__}: {caught}") from None
    elif len(values) > 1:
        return [out for value in values for out in forward(model, [value], bucket, limits)]
    return [caught]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once may help: CUDA's own class, Python's, or torch's words for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether every later call on the device will fail, too (an illegal access poisons the CUDA context)."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _LOST_DEVICE)


def free_memory() -> None:
    """Give cached device memory back; torch is only touched where it is loaded already."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _without_frames(error: Exception) -> Exception:
    """The error without its traceback: the frames hold the very tensors that did not fit."""
    error.__context__ = None
    return error.with_traceback(None)
