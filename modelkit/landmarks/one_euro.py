"""The one-euro filter (Casiez et al., CHI 2012): less jitter where points rest, little lag where they move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class OneEuro:
    """A low-pass filter of first order whose cutoff rises with the speed of a point.

    Time is counted in frames and speed in sizes of the object a frame, so that settings hold for any frame size.

    Args:
        min_cutoff: cycles a frame that pass where a point rests; smaller is smoother.
        beta: cycles a frame more for each size of the object that a point goes in a frame; larger lags less.
        speed_cutoff: of the filter of the speed itself, cycles a frame.
    """

    min_cutoff: float = 0.05
    beta: float = 5.0
    speed_cutoff: float = 0.1

    def __post_init__(self) -> None:
        if min(self.min_cutoff, self.speed_cutoff) <= 0 or self.beta < 0:
            raise ValueError(f"cutoffs must be positive and beta not negative, got {self}")

    def __call__(
        self, points: np.ndarray, before: np.ndarray, speed: np.ndarray, frames: int, size: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step of algorithm 1 of the paper, for all points of an object.

        Args:
            points: (K, 2) as they were measured; NaN where one is absent.
            before: (K, 2) filtered places of the last time; NaN where a point was absent: it starts afresh.
            speed: (K, 2) filtered, sizes a frame.
            frames: since the last time.
            size: of the object, in the unit of points, positive.

        Returns:
            Filtered places and speed, both (K, 2); speed is 0 for points that start.
        """
        is_new = ~np.isfinite(before).all(-1, keepdims=True)
        moved = np.where(is_new | ~np.isfinite(points), 0.0, points - before) / (size * frames)
        speed = np.where(is_new, 0.0, _blend(moved, speed, _alpha(np.array(self.speed_cutoff), frames)))
        cutoff = self.min_cutoff + self.beta * np.linalg.norm(speed, axis=-1, keepdims=True)
        return np.where(is_new, points, _blend(points, before, _alpha(cutoff, frames))), speed


def _blend(new: np.ndarray, old: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.asarray(alpha * new + (1 - alpha) * old)


def _alpha(cutoff: np.ndarray, frames: int) -> np.ndarray:
    """The share of the new value."""
    return np.asarray(1 / (1 + 1 / (2 * math.pi * cutoff * frames)))
