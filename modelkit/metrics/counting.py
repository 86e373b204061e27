"""How many objects were found, missed and made up: the accuracy that microscopists report.

The Data Science Bowl of 2018, StarDist and Cellpose judge by TP / (TP + FP + FN) at an IoU. What a model finds counts
in full from one score on, whereas average precision looks at the order of all scores and forgives many weak finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval, Params

from modelkit.metrics.precision import Kind, coco_evaluator

IOUS = (0.5, 0.75)
SCORE = 0.5
"""From which a find counts: what pictures, reports and exports show."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Objects of all classes and images together; a find matches at most one object of its class.

    Args:
        accuracy50, accuracy75: TP / (TP + FP + FN) at an IoU of at least .5 and .75; 1 where nothing is and was found.
        right, made_up, missed: TP, FP and FN at an IoU of .5.
        score: finds of at least it count.
        best50: the largest accuracy at an IoU of .5 over all scores that finds could count from.
        best_score: where that is reached; 1 where nothing should be shown at all.
    """

    accuracy50: float
    accuracy75: float
    right: int
    made_up: int
    missed: int
    score: float
    best50: float
    best_score: float


def accuracy_of(truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: Kind, score: float = SCORE) -> Accuracy:
    """Count finds against COCO's truth, however many an image has; what lies in crowds counts neither way.

    Args:
        truth, found, kind: as :func:`modelkit.metrics.precision.precision_of` takes them.
        score: finds of at least it count.
    """
    objects = sum(not each.get("iscrowd") for each in truth["annotations"])
    evaluator = coco_evaluator(truth, found, kind, _all_objects)
    half, three_quarters = (_finds(evaluator, which) for which in range(len(IOUS)))
    shown = [np.flatnonzero(scores >= score) for scores, _ in (half, three_quarters)]
    right = [int(hits[: len(each)].sum()) for each, (_, hits) in zip(shown, (half, three_quarters), strict=True)]
    at = [_share(hits, len(each) + objects - hits) for hits, each in zip(right, shown, strict=True)]
    best50, best_score = _best(*half, objects)
    made_up, missed = len(shown[0]) - right[0], objects - right[0]
    return Accuracy(at[0], at[1], right[0], made_up, missed, score, best50, best_score)


def _best(scores: np.ndarray, hits: np.ndarray, objects: int) -> tuple[float, float]:
    """The largest accuracy over all scores to count from, and that score; equal scores count together."""
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    right = hits.cumsum()[ends]
    curve = [_share(0, objects), *(right / (ends + 1 + objects - right))]
    best = int(np.argmax(curve))
    return float(curve[best]), float(scores[ends[best - 1]]) if best else 1.0


def _share(right: int, union: int) -> float:
    return right / union if union else 1.0


def _all_objects(parameters: Params) -> None:
    """No limit on the finds of an image, objects of any size."""
    parameters.iouThrs = np.array(IOUS)
    parameters.maxDets = [1_000_000]
    parameters.areaRng, parameters.areaRngLbl = [[0, 1e10]], ["all"]


def _finds(evaluator: COCOeval | None, which: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scores, largest first, and (n,) whether each find is right at an IoU; those in crowds are left out."""
    scores, hits = [np.zeros(0)], [np.zeros(0, bool)]
    for image in [] if evaluator is None else evaluator.evalImgs:
        if image is not None and len(image["dtScores"]):
            counted = ~np.asarray(image["dtIgnore"][which], bool)
            scores.append(np.asarray(image["dtScores"], float)[counted])
            hits.append(np.asarray(image["dtMatches"][which])[counted] > 0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.concatenate(scores)[order], np.concatenate(hits)[order]
