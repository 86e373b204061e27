"""Several single-threaded processes that train one model together.

On CPU two processes of one thread each did about twice the work of one process of two threads (small operations and the
composition of scenes do not use a second thread), so this is how a recipe uses more than one core. Gradients are
averaged through gloo over the loopback interface; processes meet through a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch import multiprocessing as mp


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``count`` processes; the default trains alone."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """The first process writes checkpoints, evaluates and prints."""
        return self.index == 0

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place; all processes end with equal bits."""
        tensors = list(gradients)
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.barrier()


def run_processes(work: Callable[..., None], arguments: tuple[object, ...], count: int, meeting: Path) -> None:
    """Call ``work(*arguments, rank)`` in ``count`` processes of one thread each; here, when count is 1.

    Args:
        work: importable function.
        arguments: picklable.
        count: number of processes.
        meeting: a path that does not exist; the processes find each other through this file.

    Raises:
        torch.multiprocessing.ProcessRaisedException: when one failed; the others are ended.
    """
    if count == 1:
        work(*arguments, Rank())
        return
    meeting.unlink(missing_ok=True)
    try:
        mp.spawn(_enter, (work, arguments, count, str(meeting)), nprocs=count, join=True)
    finally:
        meeting.unlink(missing_ok=True)


def _enter(index: int, work: Callable[..., None], arguments: tuple[object, ...], count: int, meeting: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=index, world_size=count)
    try:
        work(*arguments, Rank(index, count))
    finally:
        dist.destroy_process_group()
