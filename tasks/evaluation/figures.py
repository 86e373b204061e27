"""Figures of a model as they are stored and reported: plain JSON, group -> figure -> value, the main ones first.

Reported figures hold facts about the label set (``images``, ``objects``) beside the groups; groups are the mappings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.product import Judgement, find_kind

SCORE_FLOOR = 1e-3
"""Fixed and low: raising it alone costs a point of AP and more, so figures with other floors do not compare."""

_LONGEST_ABBREVIATION = 2


def to_json(judgement: Judgement) -> dict[str, Any]:
    """What is reported and stored of a judgement. The key of the kind is ``task``, as it always was."""
    return {
        "task": judgement.kind,
        "images": len(judgement.image_ids),
        "objects": judgement.num_objects,
        "score_floor": SCORE_FLOOR,
        **({"notes": list(judgement.notes)} if judgement.notes else {}),
        **judgement.figures,
    }


def groups_of(reported: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Group -> figure -> value, the main group first."""
    return {name: value for name, value in reported.items() if isinstance(value, Mapping)}


def main_figure(reported: Mapping[str, Any]) -> tuple[str, float] | None:
    """Name and value of the figure that models are compared by; None where nothing was judged."""
    group = next(iter(groups_of(reported).values()), {})
    return next(((name, float(value)) for name, value in group.items()), None)


def in_words(figure: str, kind: str | None) -> str:
    """The name of a figure as people write it: ``ap_small`` is "AP small".

    Args:
        figure: its key.
        kind: of the model, whose words count first; None: by the rule alone.
    """
    words = {} if kind is None else find_kind(kind).words
    if figure in words:
        return words[figure]
    first, *rest = figure.split("_")
    is_abbreviation = len(first.rstrip("0123456789")) <= _LONGEST_ABBREVIATION
    return " ".join([first.upper() if is_abbreviation else first, *rest])
