"""Where the tiles of a picture lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels of a picture: rows ``top .. bottom``, columns ``left .. right``, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size_hw(self) -> SizeHW:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def corner_yx(self) -> tuple[int, int]:
        """Row and column of its first pixel."""
        return self.top, self.left

    def common(self, other: Window) -> Window | None:
        """What two windows share; None where that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Window(top, left, bottom, right) if top < bottom and left < right else None

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Its pixels of an image (H, W, ...): a view."""
        return image[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Square tiles of one size that cover a picture, evenly spread, so that none is smaller than the others.

    Args:
        side: of a tile, source pixels.
        overlap: that neighbours share at least, source pixels; at most half a tile.

    Raises:
        ConfigError: for other numbers.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= self.side // 2:
            raise ConfigError(
                f"tiles need an overlap of 1 pixel up to half of their side, got tiles of {self.side} with an overlap "
                f"of {self.overlap}"
            )

    def is_one_tile(self, size_hw: SizeHW) -> bool:
        """Whether a picture is looked at as a whole."""
        return max(size_hw) <= self.side

    def windows(self, size_hw: SizeHW) -> list[Window]:
        """The tiles of a picture, row by row; a side that is shorter than a tile's is covered as it is."""
        (tops, height), (lefts, width) = (self._starts(length) for length in size_hw)
        return [Window(top, left, top + height, left + width) for top in tops for left in lefts]

    def _starts(self, length: int) -> tuple[list[int], int]:
        """Where tiles begin along a side of the picture, and how long they are there."""
        if length <= self.side:
            return [0], length
        count = math.ceil((length - self.overlap) / (self.side - self.overlap))
        return [round(k * (length - self.side) / (count - 1)) for k in range(count)], self.side


def domains(windows: Sequence[Window]) -> list[Window]:
    """The part of each tile that is nearer to its middle than to any other's: together they are the whole picture.

    Args:
        windows: all tiles of a picture, as ``Tiling.windows`` gives them.
    """
    cuts_y, cuts_x = _cuts({(w.top, w.bottom) for w in windows}), _cuts({(w.left, w.right) for w in windows})
    return [Window(cuts_y[w.top][0], cuts_x[w.left][0], cuts_y[w.top][1], cuts_x[w.left][1]) for w in windows]


def _cuts(spans: set[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Start of a tile -> the pixels that are its own, along one side: the strips between two are halved."""
    ordered = sorted(spans)
    between = [(before[1] + after[0]) // 2 for before, after in pairwise(ordered)]
    borders = [ordered[0][0], *between, ordered[-1][1]]
    return {start: (borders[k], borders[k + 1]) for k, (start, _) in enumerate(ordered)}
