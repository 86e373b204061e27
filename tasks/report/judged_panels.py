"""What a kind puts on the page about a judged model: sections of its own, and pictures that are worth a look.

A kind makes :class:`JudgedPanels` of a judgement (``Kind.panels``); figures, intervals and bars by class are the same
for all and stand in :mod:`tasks.report.judged_page`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.report.panels import Section


@dataclass(frozen=True, slots=True)
class JudgedPicture:
    """A labelled item with labels and finds drawn upon it.

    Args:
        item: its row of the label set: ``uri``, ``media``, ``frame``, ``height`` and ``width`` are read.
        words: what is said below it.
        draw: (H, W, 3) uint8 -> the picture to show, of any size.
    """

    item: Mapping[str, Any]
    words: str
    draw: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class JudgedGallery:
    """Pictures with a heading; ``are_pairs``: labels beside finds, so that they are twice as wide."""

    title: str
    explanation: str
    pictures: Sequence[JudgedPicture]
    are_pairs: bool = False


@dataclass(frozen=True, slots=True)
class JudgedPanels:
    """What of the page is a kind's own; ``by``: what figures by class are by, where it is no class."""

    by: str = "class"
    sections: tuple[Section, ...] = ()
    galleries: tuple[JudgedGallery, ...] = ()
