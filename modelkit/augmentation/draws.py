"""Random draws from an explicit generator; nothing in this package touches torch's global one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def lent_to_torchvision(generator: torch.Generator) -> Iterator[None]:
    """For the time of the block the global generator is seeded from ``generator``; afterwards it is as it was.

    torchvision's transforms can only draw from the global one.
    """
    seed = integer(generator, 0, 2**31 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
