"""Looking at what a module is given and gives, while a larger one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Any]]:
    """Within the block, a list that receives the inputs and the output of the module's (one) call."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.extend((inputs, output)))
    try:
        yield seen
    finally:
        hook.remove()
