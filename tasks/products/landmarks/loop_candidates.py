"""Points on their way through the loop: from an item's row to candidates, by a rule to labels, and on to examples.

A candidate is one point of one object, and its class is which point it is: so each point has a calibrator and a
threshold of its own, and is taught or not whatever becomes of the others. All points of an object name it, and say the
same of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from modelkit.carriers.landmarks import ABSENT, VISIBLE, KeypointSet, mirrored_pairs
from tasks.labels.points import NOT_GIVEN, Point
from tasks.loop.selection import Decided, first_reason, floats, normalised
from tasks.output.tables import column
from tasks.products.landmarks.overlaps import box_ious, likeness
from tasks.training.examples import Box, Example, ExampleObject

Row = Mapping[str, Any]

FLOAT = pa.float64()
COLUMNS = (
    column("object", pa.int32(), "which object of the item the point is of, from 0"),
    column("object_label", pa.int32(), "class id of the object, as its finder has it"),
    column("object_name", pa.string(), "class name of the object"),
    column("object_score", FLOAT, "confidence of the object", unit="[0, 1]"),
    column("box_xyxy", pa.list_(pa.float32()), "x0, y0, x1, y1 of the object in source pixels", unit="px"),
    column("x", FLOAT, "of the point, source pixels", unit="px"),
    column("y", FLOAT, "of the point, source pixels", unit="px"),
    column("q_peak", FLOAT, "confidence of the point, by its model alone", unit="[0, 1]"),
    column("q_views", FLOAT, "how near the point was found in other views; null without any", unit="[0, 1]"),
)
DUPLICATE_IOU = 0.7


def point_candidates(row: Row, floor: float) -> list[dict[str, Any]]:
    """The points of the objects of an item from the floor on, in the order in which they were found.

    Of objects whose boxes overlap by .7, whatever their classes are, the surest alone is asked for its points. The
    score of a point is that of its object, times the model's confidence in it, times how far other views agree.
    """
    points = 0 if row["keypoint_set"] is None else len(row["keypoint_set"]["names"])
    found: list[dict[str, Any]] = []
    for place in _chosen(row, floor):
        for k in range(points):
            if row["visibility"][place][k] != ABSENT:
                found.append(_candidate(row, place, k, points))
    return found


def _candidate(row: Row, place: int, k: int, points: int) -> dict[str, Any]:
    peak, of_object = float(row["keypoint_scores"][place][k]), float(row["scores"][place])
    agreement = None if row.get("q_views") is None else float(row["q_views"][place][k])
    x, y = row["keypoints_xy"][place][k]
    return {
        "seq": place * points + k,
        "label": k + 1,
        "name": row["keypoint_set"]["names"][k],
        "score": of_object * peak * (1.0 if agreement is None else agreement),
        "object": place,
        "object_label": row["labels"][place],
        "object_name": row["names"][place],
        "object_score": of_object,
        "box_xyxy": row["boxes_xyxy"][place],
        "x": x,
        "y": y,
        "q_peak": peak,
        "q_views": agreement,
    }


def _chosen(row: Row, floor: float) -> list[int]:
    """Places of the objects that are asked for their points."""
    ranked = sorted((k for k, score in enumerate(row["scores"]) if score >= floor), key=lambda k: -row["scores"][k])
    boxes = np.array(row["boxes_xyxy"], np.float64).reshape(-1, 4)
    near = box_ious(boxes, boxes) >= DUPLICATE_IOU
    kept: list[int] = []
    for k in ranked:
        if not near[k, kept].any():
            kept.append(k)
    return sorted(kept)


def decide_points(rows: pa.Table) -> Decided:
    """Taught from the certified threshold of the point on, else it teaches nothing: it is not taken for absent."""
    t_hi = floats(rows["t_hi"])
    reason = first_reason(("abstain", np.isnan(t_hi)), ("below_t_hi", floats(rows["score"]) < t_hi))
    accepted = reason == "certified"
    weight = normalised(floats(rows["score_calibrated"]), accepted)
    return {"decision": np.where(accepted, "accept", "ignore"), "reason": reason, "weight": weight}


def examples_of_points(labels: pa.Table, points: int, *, own_label: int | None) -> list[Example]:
    """``pseudo_labels.v2`` of points as examples.

    An object with an accepted point teaches its accepted points, all others of it are not given; it weighs what these
    weigh on average. Boxes of other objects are regions without gradient. Images of which nothing was accepted are left
    out.

    Args:
        points: how many an object has.
        own_label: class id of every object, where models do not tell them apart; None: the one it was found as.
    """
    items: dict[str, list[Row]] = defaultdict(list)
    for row in labels.to_pylist():
        items[row["image_id"]].append(row)
    found = [_example(items[image_id], points, own_label) for image_id in sorted(items)]
    return [each for each in found if each.objects]


def _example(rows: Sequence[Row], points: int, own_label: int | None) -> Example:
    first, objects, ignored = rows[0], [], []
    for mine in by_object(rows):
        accepted = [row for row in mine if row["decision"] == "accept"]
        if accepted:
            objects.append(_object(accepted, points, own_label))
        else:
            ignored.append(_box(mine[0]))
    return Example(
        uri=first["uri"],
        size_hw=(first["height"], first["width"]),
        objects=tuple(objects),
        frame=first["frame"] if first["media"] == "video" else None,
        origin="pseudo",
        ignore_boxes=tuple(ignored),
    )


def _object(accepted: Sequence[Row], points: int, own_label: int | None) -> ExampleObject:
    placed: list[Point] = [NOT_GIVEN] * points
    for row in accepted:
        placed[row["label"] - 1] = (row["x"], row["y"], float(VISIBLE))
    weight = sum(row["weight"] for row in accepted) / len(accepted)
    return ExampleObject(
        label=accepted[0]["object_label"] if own_label is None else own_label,
        box_xyxy=_box(accepted[0]),
        rle=None,
        class_weight=weight,
        box_weight=weight,
        mask_weight=0.0,
        keypoint_xyv=tuple(placed),
    )


def by_object(rows: Iterable[Row]) -> list[list[Row]]:
    """The points of each object of an item, objects in order."""
    objects: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        objects[row["object"]].append(row)
    return [objects[number] for number in sorted(objects)]


def _box(row: Row) -> Box:
    x0, y0, x1, y1 = row["box_xyxy"]
    return x0, y0, x1, y1


def item_of(candidates: Sequence[Row]) -> dict[str, Any]:
    """The lists that an item's row would have for these points, with their calibrated scores."""
    names = [name for _, name in sorted({(row["label"], row["name"]) for row in candidates})]
    objects = by_object(candidates)
    placed = [{row["name"]: row for row in mine} for mine in objects]

    def of_each(value: Any, absent: Any) -> list[list[Any]]:
        return [[value(mine[name]) if name in mine else absent for name in names] for mine in placed]

    firsts = [mine[0] for mine in objects]
    return {
        "labels": [row["object_label"] for row in firsts],
        "names": [row["object_name"] for row in firsts],
        "scores": [row["object_score"] for row in firsts],
        "boxes_xyxy": [row["box_xyxy"] for row in firsts],
        "keypoints_xy": of_each(lambda row: [row["x"], row["y"]], None),
        "keypoint_scores": of_each(lambda row: row["score_calibrated"], 0.0),
        "visibility": of_each(lambda row: VISIBLE, ABSENT),
        "surfaces": None,
        "surface_origins_xy": None,
        "track_ids": None,
        "keypoint_set": KeypointSet(tuple(names), mirrored_pairs(names)).to_json(),
    }


def point_likeness(mine: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
    """(n, m) in [0, 1]: how near two points of one item are, 0 of different ones; see ``overlaps.likeness``."""
    places = [np.array([(row["x"], row["y"]) for row in rows], np.float64).reshape(-1, 2) for rows in (mine, others)]
    labels = [np.array([row["label"] for row in rows]) for rows in (mine, others)]
    apart = np.hypot(*np.moveaxis(places[0][:, None] - places[1][None], -1, 0))
    boxes = np.array([row["box_xyxy"] for row in mine], np.float64).reshape(-1, 4)
    return np.asarray(likeness(apart, boxes) * (labels[0][:, None] == labels[1][None]))
