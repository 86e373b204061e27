"""How the dense part of a model is carried out; measured and chosen elsewhere, obeyed by the predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modelkit.errors import ConfigError

# (N, 3, H, W) float32 normalised, on the model's device, in the choice's memory format -> flat dict of raw tensors.
ForwardFn = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class ExecutionChoice:
    """One way of running ``VisionModel.dense``.

    Args:
        channels_last: keep activations as NHWC in memory.
        dtype: "float32", or "bfloat16" by autocast; what follows the dense part is always float32.
        compiled: whether the forward function given to the predictor is a compiled one; says so in records only.
    """

    channels_last: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")

    @property
    def memory_format(self) -> torch.memory_format:
        """For ``Tensor.to``."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)
