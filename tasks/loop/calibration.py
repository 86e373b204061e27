"""Scores -> probabilities that mean what they say: isotonic regression per class on held-out matches.

Classes with too few matches share a pooled calibrator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.evaluation.calibrators import Calibrator, fit_isotonic
from tasks.loop.matching import Matches
from tasks.loop.schemas import CALIBRATORS
from tasks.output.tables import table_of

MIN_MATCHES = 50  # candidates of a class on the labels that calibrate from which it has a calibrator of its own


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
