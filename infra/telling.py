"""What long work says of itself while it goes on; whoever shows progress listens.

Work of any package calls :func:`tell` as often as it likes: with nobody listening it costs nothing, and how often
people hear of it is decided by those who show it (``flows.progress``). It speaks of this process; what runs elsewhere
sends its words home first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """How far some work is.

    Args:
        doing: what is being done: "training", "listing s3://bucket/in".
        done, total: in ``unit``; ``total`` 0 while it is not known, both 0 where nothing is counted.
        unit: "shards", "steps".
        detail: the rest in words: a rate, a loss, how long it will take, what went wrong so far.
    """

    doing: str
    done: float = 0
    total: float = 0
    unit: str = ""
    detail: str = ""


Listener = Callable[[Word], None]

_listeners: list[Listener] = []


def tell(doing: str, done: float = 0, total: float = 0, unit: str = "", detail: str = "") -> None:
    """Say how far some work is; arguments as of :class:`Word`."""
    for listener in tuple(_listeners):
        listener(Word(doing, done, total, unit, detail))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear every word of this process; the listener is called from any thread and must be quick."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s``, ``8 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
