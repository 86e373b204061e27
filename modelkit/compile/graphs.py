"""The dense part of a model as compiled graphs of fixed shape, kept on disk, with eager as the way out.

A graph is exported, frozen (weights become constants, batch norms melt into convolutions, layouts are packed once) and
compiled ahead of time into one file, which holds code and packed weights. Whoever needs the same graph on the same kind
of machine loads the file in a second or two. (``torch.compile``'s own disk cache can't keep frozen convolutions on a
CPU: it refuses packed weights, so every process would trace and generate anew.)

Generated code can also end its process (seen: a segmentation fault of torch 2.11's loader on a GPU). So a new graph is
first loaded and run in a process of its own; where that crashes, the reason is kept in the graph's place, and nobody
compiles it again there. (What else fails there, memory that others hold, say, may go well another time.)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.carriers import SizeHW
from modelkit.compile.execution import ForwardFn
from modelkit.errors import ConfigError
from modelkit.records import write_whole

MAX_GRAPHS = 16  # buckets compiled in one process; each holds a packed copy of the weights
_TRIAL = Path(__file__).with_name("graph_trial.py")
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)}
_TRIAL_LIMIT_S = 300.0  # torch 2.11 tries a compiler for each vector extension first: 60 s on a cold cache


def missing_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device here; None if it can."""
    if device.type not in ("cpu", "cuda"):
        return f"compiling is not supported for {device.type}"
    if sys.platform == "win32":
        return "compiling is not supported on Windows"
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        return f"no C++ compiler ({wanted}) on this machine"
    return None


def prepare_cache(cache_dir: Path) -> None:
    """Make torch keep all it generates below this folder, from now on, in this process and its children.

    Raises:
        ConfigError: when others could write there: what lies in the cache is executed.
    """
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache_dir.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{cache_dir} must belong to the current user and be writable by nobody else")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir / "parts")


def machine_identity(device: torch.device) -> list[str]:
    """What a graph's code is made for: another processor could meet instructions that it does not know."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_processor_flags()}"
    return [kind, torch.__version__, sys.platform, f"{torch.get_num_threads()} threads"]


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]


class CompiledForward:
    """A forward function (``modelkit.compile.execution.ForwardFn``) that runs compiled graphs where it has them.

    One graph for each bucket, always at ``batch_size`` images: larger batches are cut, smaller ones filled up, so that
    an image's result never depends on how many others came with it. A bucket without a graph runs eagerly, always: a
    graph's last digits are others, so none may appear while work goes on.

    Args:
        dense: ``VisionModel.dense``.
        eager: the same, uncompiled, with the same number and memory format.
        cache_dir: where graphs are kept, see :func:`prepare_cache`.
        identity: names the weights; plain JSON. Shape, formats and machine are added here.
        device: of the model.
        bf16: run under autocast to bfloat16.
        batch_size: images of a graph.
        memory_format: of the batches.
    """

    def __init__(
        self,
        dense: Callable[[Tensor], dict[str, Tensor]],
        eager: ForwardFn,
        *,
        cache_dir: Path,
        identity: Mapping[str, Any],
        device: torch.device,
        bf16: bool,
        batch_size: int,
        memory_format: torch.memory_format,
    ) -> None:
        prepare_cache(cache_dir)
        self._dense, self._eager = dense, eager
        self._cache_dir, self._identity = cache_dir, dict(identity)
        self._device, self._bf16, self._batch_size = device, bf16, batch_size
        self._memory_format = memory_format
        self._graphs: dict[SizeHW, ForwardFn] = {}

    @property
    def buckets(self) -> list[SizeHW]:
        """Those that have a graph in this process."""
        return list(self._graphs)

    def path(self, bucket: SizeHW) -> Path:
        """Where the graph of a bucket lies, or will lie."""
        formats = [str(self._memory_format), "bfloat16" if self._bf16 else "float32"]
        identity = [self._identity, self._batch_size, bucket, formats, machine_identity(self._device)]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._cache_dir / "graphs" / f"{digest[:32]}.pt2"

    def is_on_disk(self, bucket: SizeHW) -> bool:
        """Whether the graph only has to be loaded."""
        return self.path(bucket).exists()

    def compile_now(self, bucket: SizeHW) -> str | None:
        """Compile the graph of a bucket, or load it from the disk; returns why that failed, or None.

        Where another process is compiling the same graph, it is waited for.
        """
        if bucket in self._graphs:
            return None
        if len(self._graphs) >= MAX_GRAPHS:
            return f"{MAX_GRAPHS} buckets are compiled already"
        path = self.path(bucket)
        try:
            import torch._inductor  # seconds, which who stays eager need not spend

            with _one_at_a_time(path):
                if problem := _refusal(path):
                    return problem
                if not path.exists():
                    self._compile(bucket, path)
            graph = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
            graph(self._example(bucket))
        except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; eager always works
            return f"compiling failed: {_first_line(error)}"
        self._graphs[bucket] = graph
        return None

    def _compile(self, bucket: SizeHW, path: Path) -> None:
        """Export, freeze, compile; the file appears whole or not at all."""
        scratch = Path(tempfile.mkdtemp(dir=path.parent, suffix=".partial"))
        module = _Dense(self._dense, self._device, self._bf16)
        try:
            with torch.no_grad():
                program = torch.export.export(module, (self._example(bucket),), strict=False)
                made = torch._inductor.aoti_compile_and_package(
                    program, package_path=str(scratch / path.name), inductor_configs={"freezing": True}
                )
            self._try_out(Path(made), bucket, path)
            os.replace(made, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _try_out(self, made: Path, bucket: SizeHW, path: Path) -> None:
        """Raise if the graph does not run in a process of its own; if it crashes, leave the reason beside ``path``."""
        example = self._example(bucket)
        layout = "CHANNELS_LAST" if self._memory_format == torch.channels_last else "CONTIGUOUS"
        command = [sys.executable, "-P", str(_TRIAL), str(made), str(self._device), layout, *map(str, example.shape)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TRIAL_LIMIT_S)
        if tried.returncode == 0:
            return
        last = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        ended = f"by signal {-tried.returncode}" if tried.returncode < 0 else f"with {tried.returncode}"
        reason = f"the compiled graph was tried in a process of its own, which ended {ended}: {last}"
        if tried.returncode in _CRASHES:
            write_whole(_refusal_path(path), reason.encode())
        raise RuntimeError(reason)

    def _example(self, bucket: SizeHW) -> Tensor:
        zeros = torch.zeros(self._batch_size, 3, *bucket, device=self._device)
        return zeros.contiguous(memory_format=self._memory_format)

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) as the model's ``dense``."""
        graph = self._graphs.get((batch.shape[2], batch.shape[3]))
        return self._eager(batch) if graph is None else self._in_pieces(graph, batch)

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


class _Dense(nn.Module):
    """What is exported: the model (so that its weights are found) behind the call to its dense part."""

    def __init__(self, dense: Callable[[Tensor], dict[str, Tensor]], device: torch.device, bf16: bool) -> None:
        super().__init__()
        self.model = getattr(dense, "__self__", None)
        self._dense, self._device, self._bf16 = dense, device, bf16
        self.eval()

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """As the model's ``dense``, under autocast where wanted."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self._dense(batch)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of a graph; the system lets it go when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refusal_path(path: Path) -> Path:
    return path.with_suffix(".refused")


def _refusal(path: Path) -> str | None:
    """What an earlier process met when it tried this graph: it must not be loaded here."""
    where = _refusal_path(path)
    return f"{where.read_text()} (found earlier; delete {where} to try again)" if where.exists() else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"
