"""The exponential moving average of a model, buffers included."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """A slowly following copy of a model.

    Floating-point parameters *and buffers* (running statistics of a norm) are averaged; integer buffers (counters) are
    copied. The decay warms up as (1 + n) / (10 + n), so that early averages do not hang on the random start.

    Args:
        model: what is followed; deep-copied.
        decay: weight of the past per update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a step towards ``model``."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, values = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[n] for n in floating], [values[n] for n in floating], 1 - decay)
        for name in values.keys() - set(floating):
            averages[name].copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by name; ``num_updates`` is kept by the caller."""
        return self.model.state_dict()

    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore what ``state_dict`` and ``num_updates`` said."""
        self.model.load_state_dict(dict(tensors))
        self.num_updates = num_updates
