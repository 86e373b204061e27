"""From a selection to a training set: three bands become objects with weights, ignored regions, and background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from modelkit import Instances, Predictor, rle
from tasks.evaluation.evaluate import predictions
from tasks.labels.label_sets import LabelSet
from tasks.loop.candidates import MEASURED, Teacher, most_confident, score_of
from tasks.loop.schemas import CANDIDATES
from tasks.output.tables import table_of
from tasks.training.examples import Box, Example, ExampleObject

SCORE_FLOOR = 0.05


def examples_of_objects(labels: pa.Table) -> list[Example]:
    """``pseudo_labels.v1`` of objects as examples.

    Accepted rows teach class, box and mask as far as each was accepted, with their weights; ignored ones make regions
    without gradient; rejected ones are background. Images with neither accepted nor ignored rows are left out: that a
    teacher sees nothing is no proof that nothing is there.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        if row["decision"] != "reject":
            rows[row["image_id"]].append(row)
    return [_example(rows[image_id]) for image_id in sorted(rows)]


def _example(rows: list[dict[str, Any]]) -> Example:
    first = rows[0]
    accepted = [row for row in rows if row["decision"] == "accept"]
    return Example(
        uri=first["media_uri"],
        size_hw=(first["height"], first["width"]),
        objects=tuple(_object(row) for row in accepted),
        frame=first["frame_index"],
        origin="pseudo",
        ignore_boxes=tuple(_box(row) for row in rows if row["decision"] == "ignore"),
    )


def _object(row: dict[str, Any]) -> ExampleObject:
    return ExampleObject(
        label=row["class_id"],
        box_xyxy=_box(row),
        rle=row["mask_rle"],
        class_weight=row["weight_cls"] if row["accept_cls"] else 0.0,
        box_weight=row["weight_geom"] if row["accept_box"] else 0.0,
        mask_weight=row["weight_geom"] if row["accept_mask"] and row["mask_rle"] is not None else 0.0,
    )


def _box(row: dict[str, Any]) -> Box:
    x, y, width, height = row["bbox_xywh"]
    return x, y, x + width, y + height


def examples_of_segments(labels: pa.Table, things: Collection[int]) -> list[Example]:
    """``pseudo_labels.v1`` of panoptic segments as examples.

    Accepted segments teach their class, things also as objects; pixels of no accepted segment are void, and boxes of
    ignored things are regions without gradient. Images of which nothing was accepted are left out.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        rows[row["image_id"]].append(row)
    return [
        _segment_example(rows[image_id], things)
        for image_id in sorted(rows)
        if any(row["decision"] == "accept" for row in rows[image_id])
    ]


def _segment_example(rows: list[dict[str, Any]], things: Collection[int]) -> Example:
    size_hw = (rows[0]["height"], rows[0]["width"])
    void = np.ones(size_hw, bool)
    for row in rows:
        if row["decision"] == "accept":
            void &= ~rle.decode(row["mask_rle"], size_hw).astype(bool)
    return Example(
        uri=rows[0]["media_uri"],
        size_hw=size_hw,
        objects=tuple(_object(row) for row in rows if row["decision"] == "accept"),
        frame=rows[0]["frame_index"],
        origin="pseudo",
        ignore_boxes=tuple(_box(row) for row in rows if row["decision"] != "accept" and row["class_id"] in things),
        void_rle=rle.encode(void),
    )


def examples_of_pixels(labels: pa.Table, background: int | None) -> list[Example]:
    """``pseudo_labels.v1`` of pixels as examples.

    Accepted regions teach their class; accepted background is what no object covers. All other pixels do not teach, but
    count in the mean of the loss. Images of which nothing was accepted are left out.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        if row["decision"] == "accept":
            rows[row["image_id"]].append(row)
    return [_pixel_example(rows[image_id], background) for image_id in sorted(rows)]


def _pixel_example(accepted: list[dict[str, Any]], background: int | None) -> Example:
    first = accepted[0]
    size_hw = (first["height"], first["width"])
    unsure = np.ones(size_hw, bool)
    for row in accepted:
        unsure &= ~rle.decode(row["mask_rle"], size_hw)
    return Example(
        uri=first["media_uri"],
        size_hw=size_hw,
        objects=tuple(_object(row) for row in accepted if row["class_id"] != background),
        frame=first["frame_index"],
        origin="pseudo",
        unsure_rle=rle.encode(unsure),
    )


def candidates_on(
    predictor: Predictor,
    labels: LabelSet,
    teacher: Teacher,
    *,
    task: str,
    floor: float,
    split: str,
    run_id: str,
    round_number: int,
) -> pa.Table:
    """``candidates.v1`` of a model on labelled images, for calibration on C and for its check on G.

    The same floor and limit as on U, so that the scores are of one population.

    Args:
        predictor: as it looks at U.
        labels: of the images.
        teacher: its lineage.
        task: of the loop.
        floor: less confident predictions are left out.
        split: of the images.
        run_id, round_number: of the round.
    """
    names = predictor.weights.class_names()
    shared = {
        **{name: getattr(teacher, name) for name in Teacher.__slots__},
        "run_id": run_id,
        "round": round_number,
        "split": split,
        "task": task,
        "geom_space": "source",
    }
    rows = [
        {**shared, **_item(item), **_candidate(found, k, names, task)}
        for item, found in predictions(predictor, labels.table.to_pylist(), floor=floor)
        for k in most_confident(found.scores.tolist(), task, floor)
    ]
    return table_of(CANDIDATES, rows) if rows else CANDIDATES.empty()


def _item(row: Any) -> dict[str, Any]:
    is_frame = row["media"] == "video"
    return {
        "image_id": row["image_id"],
        "media_uri": row["uri"],
        "width": row["width"],
        "height": row["height"],
        "video_id": row["uri"] if is_frame else None,
        "frame_index": row["frame"] if is_frame else None,
        "group_id": row["group_id"],
    }


def _candidate(found: Instances, k: int, names: dict[int, str], task: str) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in found.boxes_xyxy[k])
    mask = None if found.rles is None else found.rles[k]
    qualities = found.qualities or {}
    return {
        "seq": k,
        "class_id": int(found.labels[k]),
        "class_name": names.get(int(found.labels[k]), f"class {found.labels[k]}"),
        "score_raw": score_of(float(found.scores[k]), task),
        "bbox_xywh": [x0, y0, x1 - x0, y1 - y0],
        "mask_rle": mask,
        "mask_area": None if mask is None else rle.area(mask),
        **{name: float(qualities[name][k]) for name in MEASURED if name in qualities},
    }
