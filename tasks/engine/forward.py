"""Batches through the model, whatever it throws: out of memory halves the batch, a bad item fails alone."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_LOST_DEVICE = ("cuda error", "device-side assert", "illegal memory access", "cublas_status", "cudnn_status_internal")


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
