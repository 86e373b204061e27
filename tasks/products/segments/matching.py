"""Which predictions are right: COCO's greedy match of predictions with truth, per image and class.

Predictions are taken from the most confident on; each takes the free true object with the largest IoU of at least the
limit. A prediction that only reaches a crowd region, or lies mostly on void pixels, is neither right nor wrong and
leaves the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from tasks.evaluation.coco_shapes import boxes_xywh, coco_rles, size_of
from tasks.loop.matching import Matches
from tasks.products.segments.loop_candidates import Row

CLASS_IOU = 0.5  # right for the class loss
MASK_IOU = 0.75  # right for the mask loss
_VOID_SHARE = 0.5
_COLUMNS = ["image_id", "label", "score", "box_xyxy", "rle", "height", "width"]


def match_candidates(candidates: pa.Table, truth: pa.Table, *, limit: float = CLASS_IOU) -> Matches:
    """Match all candidates on labelled images with their truth.

    Args:
        candidates: ``candidates.v2`` of these images.
        truth: ``labels.v1``; candidates of other images are refused.
        limit: IoU from which a prediction is right.

    Raises:
        ValueError: candidates of an image without truth.
    """
    names = truth["image_id"].to_pylist()
    place = {name: k for k, name in enumerate(names)}
    by_image: dict[str, list[Row]] = {}
    for position, row in enumerate(candidates.select(_COLUMNS).to_pylist()):
        if row["image_id"] not in place:
            raise ValueError(f"{row['image_id']} has candidates but no truth: it is not in this calibration set")
        by_image.setdefault(row["image_id"], []).append({**row, "row": position})
    found: list[tuple[int, int, float, float, bool, int]] = []
    counts: dict[int, int] = {}
    for row in truth.to_pylist():
        for label, crowd in zip(row["labels"], row["is_crowd"], strict=True):
            counts[label] = counts.get(label, 0) + (not crowd)
        mine = by_image.get(row["image_id"], [])
        found += [(place[row["image_id"]], *each) for each in _match_image(mine, row, limit)]
    return Matches.of(found, names, counts)


def _match_image(predictions: Sequence[Row], truth: Row, limit: float) -> Iterator[tuple[int, float, float, bool, int]]:
    """(label, score, IoU, correct, row) of the predictions that count."""
    for wanted in sorted({each["label"] for each in predictions}):
        ranked = sorted(
            (each for each in predictions if each["label"] == wanted), key=lambda each: (-each["score"], each["row"])
        )
        places = [k for k, label in enumerate(truth["labels"]) if label == wanted]
        crowd = np.array([truth["is_crowd"][k] for k in places], bool)
        ious = overlaps(ranked, truth, places)
        void = _void_shares(ranked, truth)
        taken = np.zeros(len(places), bool)
        for k, each in enumerate(ranked):
            free = ~crowd & ~taken
            best = int(np.argmax(np.where(free, ious[k], -1.0))) if free.any() else -1
            if best >= 0 and ious[k, best] >= limit:
                taken[best] = True
                yield wanted, each["score"], float(ious[k, best]), True, each["row"]
            elif not (ious[k][crowd] >= limit).any() and void[k] <= _VOID_SHARE:
                nearest = float(ious[k][~crowd].max(initial=0.0))
                yield wanted, each["score"], nearest, False, each["row"]


def overlaps(predictions: Sequence[Row], truth: Row, places: Sequence[int]) -> np.ndarray:
    """(n, m) IoU of predictions with some objects of an image: of masks where all have one, else of boxes.

    Against a crowd it is the share of the prediction that lies in it, as COCO has it.
    """
    if not predictions or not places:
        return np.zeros((len(predictions), len(places)))
    crowd = [int(truth["is_crowd"][k]) for k in places]
    masks = [each["rle"] for each in predictions]
    true_masks = [truth["rles"][k] for k in places]
    if all(mask is not None for mask in [*masks, *true_masks]):
        size_hw = size_of(truth)
        return np.asarray(coco_mask.iou(coco_rles(masks, size_hw), coco_rles(true_masks, size_hw), crowd))
    boxes = [boxes_xywh([each["box_xyxy"] for each in predictions])]
    boxes.append(boxes_xywh([truth["boxes_xyxy"][k] for k in places]))
    return np.asarray(coco_mask.iou(*boxes, crowd))


def _void_shares(predictions: Sequence[Row], truth: Row) -> np.ndarray:
    """(n,) share of each prediction's mask that nobody labelled; 0 without masks or void."""
    if truth["void_rle"] is None or not predictions or any(each["rle"] is None for each in predictions):
        return np.zeros(len(predictions))
    size_hw = size_of(truth)
    masks = coco_rles([each["rle"] for each in predictions], size_hw)
    void = coco_rles([truth["void_rle"]], size_hw)
    return np.asarray(coco_mask.iou(masks, void, [1]))[:, 0]  # crowd: share of the mask
