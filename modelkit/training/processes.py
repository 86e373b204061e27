"""Several processes that train one model together, whoever started them: gradients are averaged.

On CPU two processes of one thread each did about twice the work of one process of two threads (small operations do not
use a second thread), so this is how a training uses more than one core.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


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
