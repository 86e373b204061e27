"""Random draws from an explicit generator; nothing in this package touches torch's global one.

Batches are made by a thread beside training, and the global generator is one for all threads: whoever seeds it for a
moment (torchvision's transforms can draw from no other) changes what dropout draws meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """In [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """In low .. high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def chance(generator: torch.Generator, probability: float) -> bool:
    """True with this probability; always draws, so that later draws do not depend on the probability."""
    return uniform(generator, 0.0, 1.0) < probability


def choice(generator: torch.Generator, options: Sequence[T]) -> T:
    """One of several, all equally likely."""
    return options[integer(generator, 0, len(options) - 1)]
