"""What the three segmentation kinds share in the loop: candidates with box and mask, and how much two are the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

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


def coco_rles(masks: Sequence[bytes], size_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """As pycocotools takes them."""
    return [{"size": list(size_hw), "counts": mask} for mask in masks]


def size_of(row: Row) -> tuple[int, int]:
    """Rows and columns of the item."""
    return row["height"], row["width"]


def mask_iou(mine: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
    """(n, m) IoU of masks of one item; 0 where either has none, or one without a pixel."""
    found = np.zeros((len(mine), len(others)))
    here, there = ([k for k, row in enumerate(rows) if row["rle"] is not None] for rows in (mine, others))
    if here and there:
        sides = [coco_rles([rows[k]["rle"] for k in places], size_of(mine[0]))
                 for rows, places in ((mine, here), (others, there))]  # fmt: skip
        found[np.ix_(here, there)] = np.asarray(coco_mask.iou(*sides, [0] * len(there)))
    return found


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


def box_of(row: Row) -> Box:
    """x0, y0, x1, y1."""
    x0, y0, x1, y1 = row["box_xyxy"]
    return x0, y0, x1, y1


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
