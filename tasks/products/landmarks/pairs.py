"""Labelled objects beside what a model found of each: what errors of points are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from modelkit.carriers.landmarks import Landmarks
from tasks.labels.label_sets import LabelSet
from tasks.products.landmarks.in_boxes import Row, judged_objects

SAME_OBJECT = 0.5
"""IoU of boxes from which a find is of a labelled object, for models that find their objects themselves."""


@dataclass(frozen=True, slots=True)
class PointEvidence:
    """Labels with points, and what a model finds in each image, in the order of their table.

    Args:
        model: its name. top_down: whether it looked at the labelled boxes.
        labels: under its class ids.
        found: of each image, with the labels' points in their order; a top-down model's are of the judged objects.
        supports: of each image (n, K), what the model sees at the labelled places; None of models that cannot say.
    """

    model: str
    top_down: bool
    labels: LabelSet
    found: Sequence[Landmarks]
    supports: Sequence[np.ndarray] | None


@dataclass(frozen=True, slots=True)
class ObjectPairs:
    """n labelled objects of K points, and what was found of each.

    Args:
        image, place, at: (n,) which image, where in its row of labels, and where among what was found in it.
        true_xyv: (n, K, 3). boxes_xyxy: (n, 4), as labelled.
        found_xy: (n, K, 2), NaN where a point was not found. scores: (n, K).
        not_found: labelled objects with points of which nothing was found.
    """

    image: np.ndarray
    place: np.ndarray
    at: np.ndarray
    true_xyv: np.ndarray
    boxes_xyxy: np.ndarray
    found_xy: np.ndarray
    scores: np.ndarray
    not_found: int

    def __len__(self) -> int:
        return len(self.image)


def pairs_of(evidence: PointEvidence, rows: Sequence[Row]) -> ObjectPairs:
    """The judged objects of all images that were found, in the order of the labels.

    Args:
        rows: of ``evidence.labels``.
    """
    triples = [
        (image, place, at)
        for image, (row, found) in enumerate(zip(rows, evidence.found, strict=True))
        for place, at in _paired(row, found, evidence.top_down)
    ]
    image, place, at = np.array(triples, np.int64).reshape(-1, 3).T
    count = len(evidence.labels.points or ())
    found = evidence.found
    return ObjectPairs(
        image, place, at,
        np.array([rows[i]["keypoint_xyv"][k] for i, k, _ in triples], np.float64).reshape(-1, count, 3),
        np.array([rows[i]["boxes_xyxy"][k] for i, k, _ in triples], np.float64).reshape(-1, 4),
        np.array([found[i].keypoints_xy[k] for i, _, k in triples], np.float64).reshape(-1, count, 2),
        np.array([found[i].keypoint_scores[k] for i, _, k in triples], np.float64).reshape(-1, count),
        sum(len(judged_objects(row)) for row in rows) - len(triples),
    )  # fmt: skip


def _paired(row: Row, found: Landmarks, top_down: bool) -> list[tuple[int, int]]:
    """(labelled object, what was found of it): of judged objects, those that were found."""
    chosen = judged_objects(row)
    if top_down or not chosen or not len(found):
        return list(zip(chosen, range(len(chosen)), strict=True)) if top_down else []
    boxes = torch.tensor([row["boxes_xyxy"][k] for k in chosen], dtype=torch.float32)
    best, which = box_iou(boxes, torch.from_numpy(found.boxes_xyxy).float()).max(1)
    together = zip(chosen, which.tolist(), (best >= SAME_OBJECT).tolist(), strict=True)
    return [(place, at) for place, at, same in together if same]
