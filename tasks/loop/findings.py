"""What two models see differently: the records that the loop and a kind's exports hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement; a side is None where that model sees nothing. The sides are rows of ``pseudo_labels.v2``."""

    difference: str
    weight: float
    champion: Row | None
    candidate: Row | None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The disagreements of one item.

    Args:
        image_id, uri: of the item. frame: of a video; None for an image.
        size_hw: of the source.
        findings: each difference.
        differences: what kinds of them there are, sorted.
        weight: how much there is to look at.
    """

    image_id: str
    uri: str
    frame: int | None
    size_hw: tuple[int, int]
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    weight: float

    def side(self, name: str) -> list[Row]:
        """What "champion" or "candidate" sees of all that."""
        return [row for finding in self.findings if (row := getattr(finding, name)) is not None]
