"""Calibrators: isotonic maps from scores to probabilities, and the error that is left (D-ECE).

Isotonic rather than temperature: for detectors one temperature cannot bend the curve where it is wrong (Kuzucu et al.,
ECCV 2024, "On Calibration of Object Detectors").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from tasks.output.layout import canonical_json

BINS = 25


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A piecewise linear, never falling map from a score to a probability.

    Args:
        label: None: of all classes together.
        knots_x, knots_y: ascending scores and their values; scores outside take the nearest end's.
        n: candidates it was fitted on.
        feature: column that it reads.
        target: what it predicts.
    """

    label: int | None
    knots_x: tuple[float, ...]
    knots_y: tuple[float, ...]
    n: int
    feature: str
    target: str
    d_ece_before: float
    d_ece_after: float

    @property
    def calibrator_id(self) -> str:
        """Digest of the map, hex."""
        content = [self.label, self.feature, self.target, list(self.knots_x), list(self.knots_y)]
        return hashlib.sha256(canonical_json(content)).hexdigest()[:32]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) float64 probabilities."""
        if not self.knots_x:
            return np.asarray(scores, np.float64)
        return np.interp(np.asarray(scores, np.float64), self.knots_x, self.knots_y)


def fit_isotonic(scores: np.ndarray, goal: np.ndarray, *, label: int | None, feature: str, target: str) -> Calibrator:
    """Least squares among maps that never fall (pool adjacent violators). Equal scores share one value.

    Without any candidate the map is the identity: there is nothing to learn from.
    """
    x, inverse, weights = np.unique(scores, return_inverse=True, return_counts=True)
    if len(x) == 0:
        return Calibrator(label, (), (), 0, feature, target, 0.0, 0.0)
    means = np.bincount(inverse, goal) / weights
    y = np.clip(isotonic_regression(means, weights=weights).x, 0.0, 1.0)
    keep = np.ones(len(x), bool)
    keep[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])  # inside a flat piece, knots say nothing
    fitted = np.interp(scores, x[keep], y[keep])
    return Calibrator(
        label,
        tuple(x[keep].tolist()),
        tuple(y[keep].tolist()),
        len(scores),
        feature,
        target,
        d_ece(scores, goal),
        d_ece(fitted, goal),
    )


def d_ece(confidence: np.ndarray, goal: np.ndarray, bins: int = BINS) -> float:
    """Detection expected calibration error: mean over equal bins of |confidence - precision|, weighted by their size.

    Args:
        confidence: (n,) in [0, 1].
        goal: (n,) whether each is right (greedy match).
    """
    if len(confidence) == 0:
        return 0.0
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    gap = np.bincount(place, confidence, bins) - np.bincount(place, np.asarray(goal, np.float64), bins)
    return float(np.abs(gap).sum() / len(confidence))
