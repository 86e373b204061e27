"""Functions by name: "package.module:function", imported only when somebody needs them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from infra.errors import UsageError


def resolve(dotted: str) -> Callable[..., Any]:
    """The function behind "module:function".

    Raises:
        UsageError: when there is no such module or function.
    """
    module, _, name = dotted.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"no function {dotted!r}: {error}", hint='Write it as "package.module:function".') from error
    if not callable(function):
        raise UsageError(f"{dotted!r} is no function but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Name:
    dotted: str


def lazily(dotted: str) -> Callable[..., Any]:
    """The function behind "module:function", to be kept in a :class:`Lazy` record."""
    return cast(Callable[..., Any], _Name(dotted))


class Lazy:
    """A record whose fields may hold :func:`lazily` named functions: who asks for such a field gets the function."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return resolve(value.dotted) if type(value) is _Name else value
