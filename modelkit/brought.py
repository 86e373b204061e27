"""Modules of other packages that register models, named before anything of modelkit is loaded: this imports nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_brought: list[str] = []


def bring_models(module: str) -> None:
    """Name a module that registers models, to be imported when models are first looked up; as entry points do."""
    if module not in _brought:
        _brought.append(module)


def brought_models() -> tuple[str, ...]:
    """Modules that were named so."""
    return tuple(_brought)


@contextmanager
def temporary_models() -> Iterator[None]:
    """Forget, on leaving, the modules that were named inside."""
    before = list(_brought)
    try:
        yield
    finally:
        _brought[:] = before
