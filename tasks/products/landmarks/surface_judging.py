"""How good a model of surfaces is (DensePose): which part of an object a pixel shows, and where on it.

A model finds its objects itself. They are judged by average precision: of surfaces, by GPS, and of boxes. Beside it
stands how well the surfaces of those that were found fit: a labelled object is found where one of its class overlaps
its box by .5 or more, the surest first. Figures of the group ``surface`` are

    gps            mean over labelled objects, 0 where one was not found; see ``modelkit.metrics.gps``
    part_accuracy  share of the labelled points of found objects that lie on their part
    uv_error       mean of how far u and v of these points are off, in sides of a part's chart
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from infra.errors import DatasetError
from modelkit import Instances, Predictor
from modelkit.carriers.landmarks import Landmarks
from modelkit.metrics import geodesic_point_similarity
from modelkit.metrics.gps import chart_distances, similarity_evaluator, surface_at
from modelkit.metrics.oks import oks_precision
from modelkit.metrics.precision import coco_results, precision_of
from tasks.evaluation.average_precision import resampling_of
from tasks.evaluation.claims import ObjectEvidence
from tasks.evaluation.evaluate import Row, predictions
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement
from tasks.products.landmarks.overlaps import box_ious

_SAME_OBJECT = 0.5
_NOTES = (
    "gps: points are compared on the flat chart of their part, not along a body's mesh: the figures are not those that "
    "are published for DensePose",
)


def judge_surfaces(predictor: Predictor, labels: LabelSet) -> Judgement:
    """A model against labels; see the module.

    Raises:
        DatasetError: no labelled object has points of its surface.
    """
    rows = labels.table.to_pylist()
    if not any(points for row in rows for points in row.get("surface_points") or ()):
        raise DatasetError(
            "no labelled object has points of its surface",
            hint="COCO's files of DensePose have some: dp_x, dp_y, dp_I, dp_U, dp_V.",
        )
    truth, similarities = _truth_of(labels), dict[int, np.ndarray]()
    found: list[dict[str, Any]] = []
    fits: list[np.ndarray] = []
    seen: list[Instances] = []
    for number, (row, result) in enumerate(predictions(predictor, rows), start=1):
        assert isinstance(result, Landmarks) and result.surfaces is not None
        truth["images"].append({"id": number, "height": row["height"], "width": row["width"]})
        truth["annotations"] += _annotations(number, row, len(truth["annotations"]) + 1)
        seen.append(_boxes_of(result))
        found += [each | {"place": k} for k, each in enumerate(coco_results(number, seen[-1]))]
        distances = _distances(result, row)
        similarities[number] = np.array([_similarities(mine) for mine in distances]).reshape(
            len(result), len(row["labels"])
        )
        fits.append(_fit(result, row, similarities[number]))
    evaluator = similarity_evaluator(truth, found, similarities)
    return Judgement(
        kind=predictor.weights.kind,
        figures={
            "gps": asdict(oks_precision(evaluator, truth)),
            "surface": _figures(np.concatenate(fits)),
            "box": asdict(precision_of(truth, found, "bbox")),
        },
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in labels.classes),
        num_objects=len(truth["annotations"]),
        resample=resampling_of(evaluator, len(labels.classes)),
        notes=_NOTES,
        evidence=ObjectEvidence(labels, seen, predictor.weights.class_names(), False),
    )


def _truth_of(labels: LabelSet) -> dict[str, Any]:
    categories = [{"id": each.id, "name": each.name} for each in labels.classes]
    return {"images": [], "annotations": [], "categories": categories}


def _annotations(image_id: int, row: Row, first_id: int) -> list[dict[str, Any]]:
    columns = (row["labels"], row["boxes_xyxy"], row["areas"], row["is_crowd"], row["surface_points"])
    return [
        {
            "id": first_id + place, "image_id": image_id, "category_id": label, "iscrowd": int(crowd), "area": area,
            "bbox": [x0, y0, x1 - x0, y1 - y0], "num_keypoints": len(points or ()), "place": place,
        }
        for place, (label, (x0, y0, x1, y1), area, crowd, points) in enumerate(zip(*columns, strict=True))
    ]  # fmt: skip


def _boxes_of(found: Landmarks) -> Instances:
    things = np.ones(len(found), bool)
    return Instances(found.size_hw, found.boxes_xyxy, found.scores, found.labels, None, things)


def _points(row: Row, place: int) -> np.ndarray:
    """(P, 5) of a labelled object."""
    return np.array(row["surface_points"][place] or (), np.float64).reshape(-1, 5)


def _distances(found: Landmarks, row: Row) -> list[list[np.ndarray]]:
    """By object that was found and by labelled one, how far its labelled points are off."""
    truth = [_points(row, place) for place in range(len(row["labels"]))]
    return [[chart_distances(surface, points) for points in truth] for surface in found.surfaces or ()]


def _similarities(distances: Sequence[np.ndarray]) -> list[float]:
    return [float(np.nan_to_num(geodesic_point_similarity(each[None])[0])) for each in distances]


def _fit(found: Landmarks, row: Row, similarities: np.ndarray) -> np.ndarray:
    """(objects, 4) of labelled objects that have points: GPS, points, those on their part, how far off these are."""
    rows = []
    matched = _matched(found, row)
    for place in range(len(row["labels"])):
        points = _points(row, place)
        points = points[points[:, 2] > 0]
        if row["is_crowd"][place] or not len(points):
            continue
        k = matched.get(place)
        if k is None:
            rows.append((0.0, 0.0, 0.0, 0.0))
            continue
        assert found.surfaces is not None
        parts, uv = surface_at(found.surfaces[k], points[:, :2])
        right = parts == points[:, 2]
        off = np.abs(uv - points[:, 3:]).mean(1)[right].sum()
        rows.append((similarities[k, place], len(points), right.sum(), off))
    return np.array(rows, np.float64).reshape(-1, 4)


def _matched(found: Landmarks, row: Row) -> dict[int, int]:
    """Place of a labelled object -> what was found of it; the surest find has the first choice."""
    boxes = np.array(row["boxes_xyxy"], np.float64).reshape(-1, 4)
    ious = box_ious(found.boxes_xyxy.astype(np.float64), boxes)
    ious *= found.labels[:, None] == np.array(row["labels"])[None]
    matched: dict[int, int] = {}
    for k in np.argsort(-found.scores, kind="stable").tolist():
        free = [place for place in range(len(boxes)) if place not in matched and ious[k, place] >= _SAME_OBJECT]
        if free:
            matched[max(free, key=lambda place: ious[k, place])] = k
    return matched


def _figures(fits: np.ndarray) -> dict[str, float]:
    gps, points, right, off = fits.T
    return {
        "gps": float(gps.mean()),
        "part_accuracy": float(right.sum() / points.sum()) if points.any() else float("nan"),
        "uv_error": float(off.sum() / right.sum()) if right.any() else float("nan"),
    }
