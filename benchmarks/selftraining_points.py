"""Student and baseline by how far their points are off, object by object, on the sealed scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelkit import Predictor
from modelkit.metrics import mean_errors, point_errors
from tasks.evaluation.evaluate import with_classes_of
from tasks.labels.label_sets import LabelSet
from tasks.products.landmarks.in_boxes import judged_objects, seen_in_boxes
from tasks.products.landmarks.judging import lengths_of, points_in_model

DRAWS = 1_000


def less_error(models: Mapping[str, Predictor], sealed: LabelSet, normaliser: str, *, seed: int) -> dict[str, Any]:
    """NME of "baseline" and "student", and by what share of the baseline's the student's is smaller.

    Args:
        models: top-down, by role.
        sealed: labels that nothing of the loop has seen.
        normaliser: name of what errors are divided by (``judging.lengths_of``).
        seed: of the paired bootstrap over scenes; its interval is the 95 % one.
    """
    totals = {role: scene_errors(model, sealed, normaliser) for role, model in models.items()}
    baseline, student = (totals[role] for role in ("baseline", "student"))
    picked = np.random.default_rng(seed).integers(0, len(baseline), (DRAWS, len(baseline)))
    gains = 1.0 - _nme(student[picked]) / _nme(baseline[picked])
    low, high = np.quantile(gains, (0.025, 0.975)).tolist()
    nme = {role: float(_nme(total)) for role, total in totals.items()}
    return {
        "test": nme,
        "against_baseline": {"difference": 1.0 - nme["student"] / nme["baseline"], "low": low, "high": high},
    }


def _nme(totals: np.ndarray) -> np.ndarray:
    """Of scenes (..., n, 2): the sum of their objects' errors, and their number."""
    errors, objects = np.moveaxis(totals.sum(-2), -1, 0)
    return np.asarray(errors / objects)


def scene_errors(predictor: Predictor, labels: LabelSet, normaliser: str) -> np.ndarray:
    """(n, 2): by scene the sum of the mean errors of its objects, and how many there are.

    Raises:
        ValueError: a point was not found, so an object has no mean error.
    """
    assert labels.points is not None
    [length] = [each for each in lengths_of(labels.points) if each.name == normaliser]
    rows, totals = with_classes_of(predictor, labels).table.to_pylist(), []
    order = points_in_model(predictor, labels.points)
    for row, (found, _) in zip(rows, seen_in_boxes(predictor, rows, order), strict=True):
        chosen = judged_objects(row)
        true_xyv = np.array([row["keypoint_xyv"][k] for k in chosen], np.float64).reshape(-1, len(labels.points), 3)
        boxes = np.array([row["boxes_xyxy"][k] for k in chosen], np.float64).reshape(-1, 4)
        means = mean_errors(point_errors(found.keypoints_xy[:, order], true_xyv, length.of(true_xyv, boxes)))
        if not np.isfinite(means).all():
            raise ValueError(f"{predictor.weights.reference} lost a point in {row['image_id']}")
        totals.append((float(means.sum()), len(means)))
    return np.array(totals)
