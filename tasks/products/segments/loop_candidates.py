"""Segments on their way through the loop: from an item's row to candidates, by a rule to labels, and on to examples.

Candidates have a box and a mask, whichever kind found them. Here is what the kinds share, and the rule of objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from tasks.evaluation.coco_shapes import boxes_xywh, coco_rles, size_of
from tasks.loop.selection import Decided, first_reason, floats, normalised
from tasks.output.tables import column
from tasks.training.examples import Box, Example, ExampleObject

Row = Mapping[str, Any]

FLOAT = pa.float64()
COLUMNS = (
    column("box_xyxy", pa.list_(pa.float32()), "x0, y0, x1, y1 in source pixels", unit="px"),
    column("rle", pa.binary(), "COCO compressed RLE in source pixels"),
    column("area", pa.int64(), "pixels of the mask, or of the box without one", unit="px"),
    column("track_id", pa.int64(), "identity across frames; null if the teacher does not track"),
    column("q_stability", FLOAT, "IoU of the masks at logit +1 and -1", unit="[0, 1]"),
    column("q_tta", FLOAT, "mean best IoU over the other views", unit="[0, 1]"),
)
DECIDED = (
    column("accept_box", pa.bool_(), "teaches the box"),
    column("accept_mask", pa.bool_(), "teaches the mask"),
    column("weight_geometry", FLOAT, "weight of box and mask losses"),
)
MIN_AREA_PX, MAX_AREA_SHARE = 32, 0.95
MASK_NMS_IOU, BOX_NMS_IOU = 0.6, 0.7
MASK_QUALITY = 0.75
MIN_TTA_FOR_BOX = 0.85
_LISTS = {"track_id": "track_ids", "q_stability": "q_stability", "q_tta": "q_tta"}


def candidate(row: Row, place: int) -> dict[str, Any]:
    """One thing that was found, from the lists of an item's row."""
    return {
        "seq": place,
        "label": row["labels"][place],
        "name": row["names"][place],
        "score": float(row["scores"][place]),
        "box_xyxy": row["boxes_xyxy"][place],
        "rle": None if row["rles"] is None else row["rles"][place],
        "area": row["areas"][place],
        **{name: None if row.get(many) is None else row[many][place] for name, many in _LISTS.items()},
    }


def object_candidates(row: Row, floor: float) -> list[dict[str, Any]]:
    """The objects of an item from the floor on, in the order in which they were found.

    All of them: one that is left out would be taught to be background. How many there may be is the model's business.
    """
    return [candidate(row, k) for k, score in enumerate(row["scores"]) if score >= floor]


def decide_objects(rows: pa.Table) -> Decided:
    """Bands by certified thresholds; class, box and mask are taught apart.

    In order: below t_lo is background; a class that abstains, a mask that is too small or too large, a duplicate of a
    more confident candidate, and a score below t_hi are ignored; the rest teaches its class. The mask is taught from
    the certified quality on where an IoU of .75 is expected, the box where it is steady under other views (where none
    was looked at, with the mask).
    """
    score, t_hi, area = floats(rows["score"]), floats(rows["t_hi"]), floats(rows["area"])
    reason = first_reason(
        ("below_t_lo", score < floats(rows["t_lo"])),
        ("abstain", np.isnan(t_hi)),
        ("too_small", area < MIN_AREA_PX),
        ("too_large", area / (floats(rows["height"]) * floats(rows["width"])) > MAX_AREA_SHARE),
        ("duplicate", duplicates(rows)),
        ("below_t_hi", score < t_hi),
    )
    accepted = reason == "certified"
    return taught(rows, np.where(accepted, "accept", np.where(reason == "below_t_lo", "reject", "ignore")), reason)


def taught(rows: pa.Table, decision: np.ndarray, reason: np.ndarray) -> Decided:
    """What accepted objects teach: their class, and box and mask as far as these are good enough."""
    accepted = decision == "accept"
    expected, steady = floats(rows["quality_calibrated"]), floats(rows["q_tta"])
    mask = accepted & (floats(rows["quality"]) >= floats(rows["t_quality"])) & (expected >= MASK_QUALITY)  # NaN is no
    box = accepted & np.where(np.isnan(steady), mask, steady >= MIN_TTA_FOR_BOX)
    return {
        "decision": decision,
        "reason": reason,
        "weight": normalised(floats(rows["score_calibrated"]), accepted),
        "accept_box": box,
        "accept_mask": mask,
        "weight_geometry": normalised(np.where(np.isnan(expected), 0.0, expected), mask | box),
    }


def duplicates(rows: pa.Table) -> np.ndarray:
    """(n,) bool: overlaps a more confident candidate of its image and class (mask IoU .6, box IoU .7) that is none."""
    found = np.zeros(rows.num_rows, bool)
    score, label = floats(rows["score"]), rows["label"].to_numpy()
    images = rows["image_id"].to_numpy(zero_copy_only=False)
    shapes = rows.select(["rle", "box_xyxy", "height", "width"]).to_pylist()
    for mine in np.split(np.arange(len(found)), np.flatnonzero(images[1:] != images[:-1]) + 1):
        for each in np.unique(label[mine]).tolist():
            same = mine[label[mine] == each]
            if len(same) > 1:
                ranked = same[np.lexsort((same, -score[same]))]
                found[ranked] = _suppressed([shapes[k] for k in ranked.tolist()])
    return found


def _suppressed(ranked: Sequence[Row]) -> np.ndarray:
    masks = [row["rle"] for row in ranked]
    if all(mask is not None for mask in masks):
        rles = coco_rles(masks, size_of(ranked[0]))
        near = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles))) >= MASK_NMS_IOU
    else:
        boxes = boxes_xywh([row["box_xyxy"] for row in ranked])
        near = np.asarray(coco_mask.iou(boxes, boxes, [0] * len(boxes))) >= BOX_NMS_IOU
    gone = np.zeros(len(ranked), bool)
    for k in range(1, len(ranked)):
        gone[k] = bool((near[k, :k] & ~gone[:k]).any())
    return gone


def examples_of_objects(labels: pa.Table) -> list[Example]:
    """``pseudo_labels.v2`` of objects as examples.

    Accepted rows teach class, box and mask as far as each was accepted, with their weights; ignored ones make regions
    without gradient; rejected ones are background. Images with neither accepted nor ignored rows are left out: that a
    teacher sees nothing is no proof that nothing is there.
    """

    def example(rows: list[dict[str, Any]]) -> Example:
        return example_of(
            rows,
            objects=tuple(example_object(row) for row in rows if row["decision"] == "accept"),
            ignore_boxes=tuple(box_of(row) for row in rows if row["decision"] == "ignore"),
        )

    return examples_by_item(labels, lambda row: row["decision"] != "reject", example)


def examples_by_item(
    labels: pa.Table, wanted: Callable[[Row], bool], example: Callable[[list[dict[str, Any]]], Example]
) -> list[Example]:
    """One example for each item with any row that is wanted, from all of these; items in order.

    Args:
        labels: ``pseudo_labels.v2``.
        wanted: whether a row has its item taught.
        example: rows of an item -> its example.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        if wanted(row):
            rows[row["image_id"]].append(row)
    return [example(rows[image_id]) for image_id in sorted(rows)]


def example_of(rows: Sequence[Row], **content: Any) -> Example:
    """The example of an item by the rows of its candidates."""
    first = rows[0]
    return Example(
        uri=first["uri"],
        size_hw=size_of(first),
        frame=first["frame"] if first["media"] == "video" else None,
        origin="pseudo",
        **content,
    )


def example_object(row: Row) -> ExampleObject:
    """What an accepted candidate teaches: its class, and box and mask as far as these were accepted."""
    return ExampleObject(
        label=row["label"],
        box_xyxy=box_of(row),
        rle=row["rle"],
        class_weight=row["weight"],
        box_weight=row["weight_geometry"] if row["accept_box"] else 0.0,
        mask_weight=row["weight_geometry"] if row["accept_mask"] and row["rle"] is not None else 0.0,
    )


def item_of(candidates: Sequence[Row]) -> dict[str, Any]:
    """The lists that an item's row would have for these candidates, with their calibrated scores."""
    rles = [each["rle"] for each in candidates]
    return {
        "labels": [each["label"] for each in candidates],
        "names": [each["name"] for each in candidates],
        "scores": [each["score_calibrated"] for each in candidates],
        "boxes_xyxy": [each["box_xyxy"] for each in candidates],
        "areas": [each["area"] for each in candidates],
        "rles": None if any(mask is None for mask in rles) else rles,
        "track_ids": None,
        "is_thing": [True] * len(rles),
    }


def mask_iou(mine: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
    """(n, m) IoU of masks of one item; 0 where either has none, or one without a pixel."""
    found = np.zeros((len(mine), len(others)))
    here, there = ([k for k, row in enumerate(rows) if row["rle"] is not None] for rows in (mine, others))
    if here and there:
        sides = [coco_rles([rows[k]["rle"] for k in places], size_of(mine[0]))
                 for rows, places in ((mine, here), (others, there))]  # fmt: skip
        found[np.ix_(here, there)] = np.asarray(coco_mask.iou(*sides, [0] * len(there)))
    return found


def box_of(row: Row) -> Box:
    """x0, y0, x1, y1."""
    x0, y0, x1, y1 = row["box_xyxy"]
    return x0, y0, x1, y1
