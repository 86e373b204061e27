"""The kinds of metrics that a model is judged by, and the main figure of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAIN_FIGURES = {"panoptic": "pq", "semantic": "miou", "mask": "ap", "box": "ap"}
"""Figure by kind; where a model has several kinds, the first one here is the main one."""

_WORDS = {"miou": "mean IoU", "pq_things": "PQ of things", "pq_stuff": "PQ of stuff"}


def kinds_of(metrics: Mapping[str, Any]) -> list[str]:
    """The kinds that metrics have, the main one first."""
    return [kind for kind in MAIN_FIGURES if kind in metrics]


def main_figure(metrics: Mapping[str, Any]) -> float | None:
    """Panoptic quality, mean IoU, mask AP, or box AP where there are no masks; None without any of them."""
    return next((float(metrics[kind][MAIN_FIGURES[kind]]) for kind in kinds_of(metrics)), None)


def in_words(figure: str) -> str:
    """The name of a figure as people write it: ``ap_small`` is "AP small"."""
    if figure in _WORDS:
        return _WORDS[figure]
    first, *rest = figure.split("_")
    return " ".join([first.upper() if first[:2] in ("ap", "pq", "sq", "rq") else first, *rest])
