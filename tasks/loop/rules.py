"""What a kind's rule is given, and what it answers. Rules are pure: no clock, no chance, no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

WEIGHT_CAP = 2.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All candidates of a round, column by column; arrays are (n,), sorted by image and position.

    Args:
        rows: ``candidates.v2`` with the kind's own columns.
        image: position of the image; equal for candidates of one image, ascending.
        label: int64 class ids.
        score, score_calibrated: float64, as the teacher gave it, and calibrated.
        quality, quality_calibrated: float64 quality of the geometry (see :func:`quality_feature`), as measured, and
            what it makes expect; the latter is NaN without a calibrator.
        features: name -> float64 of the kind's features, NaN where not measured.
        t_hi, t_lo, t_quality: float64 by the candidate's class; NaN where the class abstains.
    """

    rows: pa.Table
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    score_calibrated: np.ndarray
    quality: np.ndarray
    quality_calibrated: np.ndarray
    features: Mapping[str, np.ndarray]
    t_hi: np.ndarray
    t_lo: np.ndarray
    t_quality: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a rule decided; arrays are (n,).

    Args:
        decision: "accept" (teaches at least its class), "ignore" or "reject".
        reason: the rule's own word for why.
        weight: float64 of what is accepted, 0 elsewhere.
        columns: values of the kind's decided columns (``LoopKind.decided``).
    """

    decision: np.ndarray
    reason: np.ndarray
    weight: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def first_reason(*ordered: tuple[str, np.ndarray]) -> np.ndarray:
    """(n,) str: the first name in order whose (n,) bool array holds, "certified" where none does."""
    reason = np.full(len(ordered[0][1]), "certified", dtype=object)
    for name, applies in reversed(ordered):
        reason[applies] = name
    return reason


def quality_feature(features: Mapping[str, np.ndarray], score: np.ndarray) -> np.ndarray:
    """(n,) mean of the features that were measured; the score where none was."""
    if not features:
        return score
    stacked = np.stack(list(features.values()))
    measured = ~np.isnan(stacked)
    count = measured.sum(axis=0)
    mean = np.where(measured, stacked, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, score)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64 of a column; null becomes NaN."""
    return column.cast(pa.float64()).to_numpy().astype(np.float64)


def normalised(weights: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Weights with mean 1 over ``where``, then capped at 2, and 0 elsewhere; six decimals, the same on any machine."""
    mean = weights[where].mean() if where.any() else 1.0
    scaled = np.minimum(weights / mean, WEIGHT_CAP) if mean > 0 else np.ones_like(weights)
    return np.where(where, np.round(scaled, 6), 0.0)
