"""The dense part of a model as compiled graphs of fixed shape, with a disk cache and a way back to eager."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from modelkit.errors import ConfigError
from modelkit.execution import ForwardFn
from modelkit.transform import SizeHW

_MAX_GRAPHS = 16  # buckets compiled in one process; each holds a packed copy of the weights
_NEVER_S = float("inf")


def missing_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device here; None if it can."""
    if sys.platform == "win32":
        return "compiling is not supported on Windows"
    if device.type == "cpu":
        wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(wanted) is None:
            return f"no C++ compiler ({wanted}) on this machine"
    elif device.type == "cuda":
        if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang")):
            return "no C compiler (gcc or clang) on this machine, which kernels for the GPU need"
    else:
        return f"compiling is not supported for {device.type}"
    return None


def prepare_cache(cache_dir: Path) -> None:
    """Make torch keep compiled code below this folder, from now on, in this process and its children.

    Raises:
        ConfigError: when others could write there: what lies in the cache is executed.
    """
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache_dir.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{cache_dir} must belong to the current user and be writable by nobody else")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir)
    os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "1"


class CompiledForward:
    """A forward function (``modelkit.execution.ForwardFn``) that runs compiled graphs where it has them.

    One graph for each bucket, always at ``batch_size`` images: larger batches are cut, smaller ones filled up, so that
    an image's result never depends on how many others came with it. A bucket without a graph runs eagerly, until it has
    cost as much time as compiling would (then compiling is at worst twice as expensive as the best hindsight).

    Args:
        dense: ``VisionModel.dense``.
        eager: the same, uncompiled, with the same number and memory format.
        device: of the model.
        bf16: run under autocast to bfloat16.
        batch_size: images of a graph.
        memory_format: of the batches.
        patience_s: eager seconds after which a further bucket is compiled; None: never.
    """

    def __init__(
        self,
        dense: Callable[[Tensor], dict[str, Tensor]],
        eager: ForwardFn,
        *,
        device: torch.device,
        bf16: bool,
        batch_size: int,
        memory_format: torch.memory_format,
        patience_s: float | None = None,
    ) -> None:
        self._dense, self._eager = dense, eager
        self._device, self._bf16, self._batch_size = device, bf16, batch_size
        self._memory_format = memory_format
        self.patience_s = patience_s
        self.problems: dict[SizeHW, str] = {}
        self._graphs: dict[SizeHW, ForwardFn] = {}
        self._eager_s: dict[SizeHW, float] = {}

    @property
    def buckets(self) -> list[SizeHW]:
        """Those that have a graph."""
        return list(self._graphs)

    def compile_now(self, bucket: SizeHW) -> str | None:
        """Compile the graph of a bucket, or load it from the disk cache; returns why that failed, or None."""
        if bucket in self._graphs:
            return None
        if len(self._graphs) >= _MAX_GRAPHS:
            self.problems[bucket] = f"{_MAX_GRAPHS} buckets are compiled already"
            return self.problems[bucket]
        compiled = torch.compile(self._dense, dynamic=False, fullgraph=True)

        def graph(batch: Tensor) -> dict[str, Tensor]:
            with self._context():
                return compiled(batch)

        example = torch.zeros(self._batch_size, 3, *bucket, device=self._device)
        try:
            graph(example.to(memory_format=self._memory_format))
        except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; eager always works
            self.problems[bucket] = f"compiling failed: {_first_line(error)}"
            return self.problems[bucket]
        self._graphs[bucket] = graph
        return None

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) as the model's ``dense``."""
        bucket = (batch.shape[2], batch.shape[3])
        graph = self._graphs.get(bucket)
        if graph is not None:
            return self._in_pieces(graph, batch)
        if self._wants_graph(bucket) and self.compile_now(bucket) is None:
            return self._in_pieces(self._graphs[bucket], batch)
        begin = time.perf_counter()
        raw = self._eager(batch)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._eager_s[bucket] = self._eager_s.get(bucket, 0.0) + time.perf_counter() - begin
        return raw

    def _wants_graph(self, bucket: SizeHW) -> bool:
        patience_s = _NEVER_S if self.patience_s is None else self.patience_s
        return bucket not in self.problems and self._eager_s.get(bucket, 0.0) > patience_s

    def _in_pieces(self, graph: ForwardFn, batch: Tensor) -> dict[str, Tensor]:
        wanted = self._batch_size
        if len(batch) == wanted:
            return graph(batch.contiguous(memory_format=self._memory_format))
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, len(batch), wanted):
            piece = batch[start : start + wanted]
            missing = wanted - len(piece)
            if missing:
                piece = torch.cat([piece, piece[-1:].expand(missing, -1, -1, -1)])
            raw = graph(piece.contiguous(memory_format=self._memory_format))
            pieces.append({name: value[: wanted - missing] for name, value in raw.items()})
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _context(self) -> ExitStack:
        """The same at every call, because a graph is bound to it: no gradients, number format, frozen weights."""
        import torch._dynamo.config as tracing  # a second to import, and not needed by who stays eager
        import torch._inductor.config as generation

        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16))
        # Frozen: weights become constants, batch norms melt into them, layouts are packed once.
        stack.enter_context(generation.patch(freezing=True))
        stack.enter_context(tracing.patch(recompile_limit=4 * _MAX_GRAPHS))
        return stack


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"
