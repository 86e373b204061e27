"""Scores -> probabilities that mean what they say: isotonic regression per class on held-out matches, and D-ECE.

Isotonic rather than temperature: for detectors one temperature cannot bend the curve where it is wrong (Kuzucu et al.,
ECCV 2024, "On Calibration of Object Detectors"). Classes with too few matches share a pooled calibrator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.optimize import isotonic_regression

from tasks.loop.matching import Matches
from tasks.loop.schemas import CALIBRATORS
from tasks.output.layout import canonical_json
from tasks.output.tables import table_of

BINS = 25
MIN_MATCHES = 50  # candidates of a class on the labels that calibrate from which it has a calibrator of its own


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


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibrators of a model: one per class that has enough matches, and the pooled one."""

    by_class: Mapping[int, Calibrator]
    pooled: Calibrator

    def of(self, label: int) -> Calibrator:
        """A class's own calibrator, or the pooled one."""
        return self.by_class.get(label, self.pooled)

    def apply(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(n,) probabilities of (n,) scores, each by its class."""
        values = np.empty(len(scores), np.float64)
        for label in np.unique(labels).tolist():
            mine = labels == label
            values[mine] = self.of(label)(scores[mine])
        return values

    def to_table(self, model_id: str) -> pa.Table:
        """Rows of ``calibrators.v2``."""
        ordered = [self.pooled, *(self.by_class[label] for label in sorted(self.by_class))]
        return table_of(CALIBRATORS, [_row(each, model_id) for each in ordered])

    @classmethod
    def from_table(cls, table: pa.Table, ids: Mapping[int, str] | None = None) -> Calibration:
        """The inverse of :meth:`to_table`.

        Args:
            table: ``calibrators.v2`` rows; without ``ids`` those of one calibration.
            ids: class id -> calibrator id, to pick from the rows of many; a class's label says which mapped it.

        Raises:
            ValueError: no or several pooled calibrators, or an id that has no row.
        """
        found = {each.calibrator_id: each for each in map(_calibrator, table.to_pylist())}
        if ids is not None:
            missing = sorted(set(ids.values()) - found.keys())
            if missing or not ids:
                raise ValueError(f"no rows of calibrators for {missing or 'any class'}")
            return cls({label: found[name] for label, name in ids.items()}, found[next(iter(ids.values()))])
        pooled = [each for each in found.values() if each.label is None]
        if len(pooled) != 1:
            raise ValueError(f"a calibration has one pooled calibrator, got {len(pooled)}")
        return cls({each.label: each for each in found.values() if each.label is not None}, pooled[0])


def fit_calibration(
    matches: Matches, *, feature: str = "score", target: np.ndarray | None = None, name: str = "true positive"
) -> Calibration:
    """Fit on matches of the calibration set.

    Args:
        matches: candidates and whether they are right.
        feature: the column that ``matches.score`` came from.
        target: (n,) in [0, 1], what to predict; whether they are right unless given (the IoU, say).
        name: the target in words.
    """
    goal = matches.correct.astype(np.float64) if target is None else np.asarray(target, np.float64)
    pooled = fit_isotonic(matches.score, goal, label=None, feature=feature, target=name)
    by_class = {}
    for label in sorted(set(matches.label.tolist())):
        mine = matches.of_class(label)
        if len(mine) >= MIN_MATCHES:
            by_class[label] = fit_isotonic(matches.score[mine], goal[mine], label=label, feature=feature, target=name)
    return Calibration(by_class, pooled)


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


def _row(each: Calibrator, model_id: str) -> dict[str, object]:
    return {
        "calibrator_id": each.calibrator_id,
        "model_id": model_id,
        "method": "isotonic",
        "feature": each.feature,
        "target": each.target,
        "label": each.label,
        "knots_x": list(each.knots_x),
        "knots_y": list(each.knots_y),
        "n": each.n,
        "d_ece_before": each.d_ece_before,
        "d_ece_after": each.d_ece_after,
    }


def _calibrator(row: Mapping[str, object]) -> Calibrator:
    x, y = (tuple(_floats(row[name])) for name in ("knots_x", "knots_y"))
    return Calibrator(
        label=None if row["label"] is None else int(str(row["label"])),
        knots_x=x,
        knots_y=y,
        n=int(str(row["n"])),
        feature=str(row["feature"]),
        target=str(row["target"]),
        d_ece_before=float(str(row["d_ece_before"])),
        d_ece_after=float(str(row["d_ece_after"])),
    )


def _floats(values: object) -> Sequence[float]:
    assert isinstance(values, list)
    return [float(value) for value in values]
