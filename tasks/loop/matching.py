"""Which predictions are right: COCO's greedy match of predictions with truth, per image and class.

Predictions are taken from the most confident on; each takes the free true object with the largest IoU of at least the
limit. A prediction that only reaches a crowd region, or lies mostly on void pixels, is neither right nor wrong and
leaves the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

CLASS_IOU = 0.5  # right for the class loss
MASK_IOU = 0.75  # right for the mask loss
_VOID_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Matches:
    """Predictions of calibration images and what became of them; all arrays (n,).

    Args:
        image: position of the image in ``image_ids``.
        class_id: int64.
        score: float64, the feature that thresholds and calibrators read.
        iou: float64, with the true object it took, else the largest with any of its class; 0 without one.
        correct: bool, class right and IoU at least the limit of the match.
        row: position of the prediction among the rows that were matched.
        image_ids: names of all images that were looked at, also those without predictions.
        truth_count: true objects by class, crowds apart.
    """

    image: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    correct: np.ndarray
    row: np.ndarray
    image_ids: tuple[str, ...]
    truth_count: dict[int, int]

    def __len__(self) -> int:
        return len(self.score)

    def where(self, chosen: np.ndarray) -> Matches:
        """Some of the predictions, on the same images."""
        names = ("image", "class_id", "score", "iou", "correct", "row")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def of_class(self, class_id: int) -> np.ndarray:
        """Positions of the predictions of one class."""
        return np.flatnonzero(self.class_id == class_id)


def match_candidates(
    candidates: pa.Table, truth: pa.Table, *, limit: float = CLASS_IOU, score_column: str = "score_raw"
) -> Matches:
    """Match all candidates on labelled images with their truth.

    Args:
        candidates: ``candidates.v1`` of these images.
        truth: ``labels.v1``; candidates of other images are refused.
        limit: IoU from which a prediction is right.
        score_column: what they are ranked by.

    Raises:
        ValueError: candidates of an image without truth.
    """
    names = truth["image_id"].to_pylist()
    place = {name: k for k, name in enumerate(names)}
    columns = ["image_id", "class_id", score_column, "bbox_xywh", "mask_rle", "height", "width"]
    by_image: dict[str, list[dict[str, Any]]] = {}
    for position, row in enumerate(candidates.select(columns).to_pylist()):
        if row["image_id"] not in place:
            raise ValueError(f"{row['image_id']} has candidates but no truth: it is not in this calibration set")
        by_image.setdefault(row["image_id"], []).append({**row, "row": position, "score": row[score_column]})
    found: list[tuple[int, int, float, float, bool, int]] = []
    counts: dict[int, int] = {}
    for row in truth.to_pylist():
        for label, crowd in zip(row["labels"], row["is_crowd"], strict=True):
            counts[label] = counts.get(label, 0) + (not crowd)
        mine = by_image.get(row["image_id"], [])
        found += [(place[row["image_id"]], *each) for each in _match_image(mine, row, limit)]
    columns_found = list(zip(*found, strict=True)) if found else [()] * 6
    kinds = (np.int64, np.int64, np.float64, np.float64, bool, np.int64)
    arrays = [np.array(column, kind) for column, kind in zip(columns_found, kinds, strict=True)]
    image, class_id, score, iou, correct, position_of = arrays
    return Matches(image, class_id, score, iou, correct, position_of, tuple(names), counts)


def _match_image(
    predictions: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], limit: float
) -> Iterator[tuple[int, float, float, bool, int]]:
    """(class, score, IoU, correct, row) of the predictions that count."""
    for class_id in sorted({each["class_id"] for each in predictions}):
        ranked = sorted(
            (each for each in predictions if each["class_id"] == class_id),
            key=lambda each: (-each["score"], each["row"]),
        )
        places = [k for k, label in enumerate(truth["labels"]) if label == class_id]
        crowd = np.array([truth["is_crowd"][k] for k in places], bool)
        ious = overlaps(ranked, truth, places)
        void = _void_shares(ranked, truth)
        taken = np.zeros(len(places), bool)
        for k, each in enumerate(ranked):
            free = ~crowd & ~taken
            best = int(np.argmax(np.where(free, ious[k], -1.0))) if free.any() else -1
            if best >= 0 and ious[k, best] >= limit:
                taken[best] = True
                yield class_id, each["score"], float(ious[k, best]), True, each["row"]
            elif not (ious[k][crowd] >= limit).any() and void[k] <= _VOID_SHARE:
                nearest = float(ious[k][~crowd].max(initial=0.0))
                yield class_id, each["score"], nearest, False, each["row"]


def overlaps(predictions: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], places: Sequence[int]) -> np.ndarray:
    """(n, m) IoU of predictions with some objects of an image: of masks where both have one, else of boxes.

    Against a crowd it is the share of the prediction that lies in it, as COCO has it.
    """
    if not predictions or not places:
        return np.zeros((len(predictions), len(places)))
    crowd = [int(truth["is_crowd"][k]) for k in places]
    masks = [each["mask_rle"] for each in predictions]
    true_masks = [truth["rles"][k] for k in places]
    if all(mask is not None for mask in [*masks, *true_masks]):
        size = [truth["height"], truth["width"]]
        return np.asarray(coco_mask.iou(_rles(masks, size), _rles(true_masks, size), crowd))
    boxes = np.array([each["bbox_xywh"] for each in predictions], np.float64)
    true_boxes = np.array([truth["boxes_xyxy"][k] for k in places], np.float64)
    true_boxes[:, 2:] -= true_boxes[:, :2]
    return np.asarray(coco_mask.iou(boxes, true_boxes, crowd))


def _rles(masks: Iterable[bytes], size: list[int]) -> list[dict[str, Any]]:
    return [{"size": size, "counts": mask} for mask in masks]


def _void_shares(predictions: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> np.ndarray:
    """(n,) share of each prediction's mask that nobody labelled; 0 without masks or void."""
    if truth["void_rle"] is None or not predictions or any(each["mask_rle"] is None for each in predictions):
        return np.zeros(len(predictions))
    size = [truth["height"], truth["width"]]
    masks = _rles([each["mask_rle"] for each in predictions], size)
    return np.asarray(coco_mask.iou(masks, _rles([truth["void_rle"]], size), [1]))[:, 0]  # crowd: share of the mask
