"""Normalisation layers by name, so that a config can say which."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from modelkit.errors import ConfigError

NormLayer = Callable[[int], nn.Module]


def norm_layer(name: str | None, *, eps: float = 1e-5) -> NormLayer | None:
    """A function from a number of channels to a fresh layer.

    Args:
        name: "batch"; "frozen_batch" (statistics and affine part are buffers, never trained); "group" (32 groups, or
            the greatest common divisor with the channels: independent of the batch size); None for no layer.
        eps: added to the variance.

    Raises:
        ConfigError: for any other name.
    """
    if name is None:
        return None
    if name == "batch":
        return functools.partial(nn.BatchNorm2d, eps=eps)
    if name == "frozen_batch":
        return functools.partial(FrozenBatchNorm2d, eps=eps)
    if name == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    raise ConfigError(f"unknown norm {name!r}; known: batch, frozen_batch, group, None")
