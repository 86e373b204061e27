"""How good a model of points is: errors over the size of objects, and COCO's average precision by OKS.

A top-down model is given the labelled boxes, so that every labelled object is judged by its own points. Errors are
divided by several lengths, each a group of figures of its name; the first is the main one: of the torso where there is
one, between the outer corners of the eyes where there are some, else the diagonal of the box. A group's figures are

    auc            area under the share of points with an error of at most t, for t up to the limit, over the limit
    pck            share of points with an error of at most the limit
    nme            mean over objects of the mean error of their points
    failure_rate   share of objects whose mean error is above the limit

A model that finds its objects itself is judged by average precision of its points (by OKS) and of its boxes; where it
or the labels have no points, as detectors are; one that tells surfaces as ``surface_judging`` says.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np

from infra.errors import DatasetError
from modelkit import Instances, Predictor
from modelkit.carriers.faces68 import OUTER_EYE_CORNERS, is_ibug
from modelkit.carriers.landmarks import KeypointSet, Landmarks
from modelkit.metrics import (
    area_under_curve,
    between,
    box_diagonal,
    failure_rate,
    mean_errors,
    object_diagonal,
    oks_evaluator,
    oks_precision,
    oks_results,
    pck,
    point_errors,
)
from modelkit.metrics.landmarks import Normaliser
from modelkit.metrics.precision import coco_results, precision_of
from tasks.evaluation.average_precision import resampling_of
from tasks.evaluation.evaluate import Row, predictions
from tasks.evaluation.objects import judge_objects
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Resampled
from tasks.products.landmarks.in_boxes import seen_in_boxes
from tasks.products.landmarks.pairs import ObjectPairs, PointEvidence, pairs_of
from tasks.products.landmarks.surface_judging import judge_surfaces

UNKNOWN_SIGMA = 0.05
"""Of each point, for OKS, where nobody measured how far annotators are apart: about COCO's usual one of a face."""

_ONLY_BOXES = "no labelled object has points, so that only boxes are judged"


@dataclass(frozen=True, slots=True)
class Length:
    """What errors are divided by.

    Args:
        name: of the group of figures.
        of: the normaliser.
        limit: errors above it are failures.
        words: for people.
    """

    name: str
    of: Normaliser
    limit: float
    words: str


_OUTER_CORNERS = "distance of the outer corners of the eyes"
_NAMED = (
    ("left_shoulder", "right_hip", "torso", 0.2, "distance of left shoulder and right hip"),
    ("neck", "head_top", "head", 0.5, "distance of neck and top of the head"),
    ("left_eye_outer", "right_eye_outer", "interocular", 0.1, _OUTER_CORNERS),
    ("left_eye", "right_eye", "interocular", 0.1, "distance of the eyes"),
)


def lengths_of(points: KeypointSet) -> list[Length]:
    """Those that a set of points has, the main one first."""
    place = {name.lower(): k for k, name in enumerate(points.names)}
    found: dict[str, Length] = {}
    for first, second, name, limit, words in _NAMED:
        if first in place and second in place:
            found.setdefault(name, Length(name, between([place[first]], [place[second]]), limit, words))
    if is_ibug(points.names):
        one, other = OUTER_EYE_CORNERS
        found["interocular"] = Length("interocular", between([one], [other]), 0.1, _OUTER_CORNERS)
    return [
        *found.values(),
        Length("box_diagonal", box_diagonal, 0.1, "diagonal of the labelled box"),
        Length("object_diagonal", object_diagonal, 0.1, "diagonal of the box around the labelled points"),
    ]


def judge(predictor: Predictor, labels: LabelSet) -> Judgement:
    """A model against labels; see the module.

    Raises:
        DatasetError: labels without points for a top-down model or of surfaces, or with points that it does not know.
    """
    if predictor.model.surface_parts:
        return judge_surfaces(predictor, labels)
    pointless = points_of_model(predictor) is None
    if pointless or (labels.points is None and not predictor.model.top_down):
        judged = judge_objects(predictor, labels, with_masks=False, objects_of=_boxes_alone)
        return judged if pointless else replace(judged, notes=(*judged.notes, _ONLY_BOXES))
    if labels.points is None:
        raise DatasetError(
            "no labelled object has points", hint="A model of points is judged by labels that have some."
        )
    order = points_in_model(predictor, labels.points)
    rows = labels.table.to_pylist()
    name, top_down = predictor.weights.name, predictor.model.top_down
    if not top_down:
        found = [_ordered(cast(Landmarks, each), order) for _, each in predictions(predictor, rows)]
        return _judgement(predictor.weights.kind, PointEvidence(name, top_down, labels, found, None), rows, None)
    seen = list(seen_in_boxes(predictor, rows, order))
    found = [_ordered(each, order) for each, _ in seen]
    supports = [values[:, order] for _, values in seen if values is not None]
    evidence = PointEvidence(name, top_down, labels, found, supports if len(supports) == len(found) else None)
    return _judgement(predictor.weights.kind, evidence, rows, pairs_of(evidence, rows))


def points_of_model(predictor: Predictor) -> KeypointSet | None:
    """What a model's points are, as far as anybody said; None where it has none."""
    return predictor.weights.keypoints or predictor.model.anonymous_keypoints()


def _boxes_alone(found: Landmarks) -> Instances:
    things = np.ones(len(found), bool)
    return Instances(found.size_hw, found.boxes_xyxy, found.scores, found.labels, None, things)


def points_in_model(predictor: Predictor, points: KeypointSet) -> list[int]:
    """Which of the model's points each labelled one is: by name, or by place where the model's have no names.

    Raises:
        DatasetError: names that the model does not know, or another number of points without names.
    """
    known = points_of_model(predictor) or KeypointSet(())
    place = {name: k for k, name in enumerate(known.names)}
    if missing := [name for name in points.names if name not in place]:
        if known.names == KeypointSet.numbered(len(known)).names and len(known) == len(points):
            return list(range(len(points)))
        raise DatasetError(
            f"{predictor.weights.name} has no point {missing[0]!r}",
            hint=f"Its points are {', '.join(known.names) or 'none'}.",
        )
    return [place[name] for name in points.names]


def _ordered(found: Landmarks, order: Sequence[int]) -> Landmarks:
    """The same with the labels' points, in their order."""
    kept = list(order)
    return Landmarks(
        found.size_hw, found.boxes_xyxy, found.scores, found.labels, found.keypoints_xy[:, kept],
        found.keypoint_scores[:, kept], found.visibility[:, kept],
    )  # fmt: skip


def _judgement(kind: str, evidence: PointEvidence, rows: Sequence[Row], objects: ObjectPairs | None) -> Judgement:
    labels, found = evidence.labels, evidence.found
    assert labels.points is not None
    truth = _coco(labels, rows)
    results = [each for number, one in enumerate(found, start=1) for each in oks_results(number, one)]
    sigmas = labels.points.sigmas or (UNKNOWN_SIGMA,) * len(labels.points)
    evaluator = oks_evaluator(truth, results, sigmas)
    notes = () if labels.points.sigmas else (f"nobody measured the points' sigmas: OKS takes {UNKNOWN_SIGMA} for each",)
    precision = {"oks": asdict(oks_precision(evaluator, truth))}
    if not evidence.top_down:
        boxes = [each for number, one in enumerate(found, start=1) for each in coco_results(number, _boxes_alone(one))]
        precision["box"] = asdict(precision_of(truth, boxes, "bbox"))
    names = tuple(each.name for each in labels.classes)
    resample: Any = resampling_of(evaluator, len(names))
    figures: dict[str, dict[str, Any]] = precision
    if objects is not None:
        lengths, names = lengths_of(labels.points), labels.points.names
        errors = {each.name: point_errors(objects.found_xy, objects.true_xyv, each.of(objects.true_xyv,
                  objects.boxes_xyxy)) for each in lengths}  # fmt: skip
        figures = {each.name: figures_of(errors[each.name], each.limit, names) for each in lengths} | precision
        main = lengths[0]
        resample = _resampling(errors[main.name], main.limit, objects.image, len(rows))
        notes = (*_words(lengths, errors), *notes)
    return Judgement(
        kind=kind,
        figures=figures,
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=names,
        num_objects=len(truth["annotations"]),
        resample=resample,
        notes=notes,
        evidence=evidence,
    )


def figures_of(errors: np.ndarray, limit: float, names: Sequence[str]) -> dict[str, Any]:
    """The figures of one length; ``by_class`` is by point, those that nobody labelled left out."""
    means = mean_errors(errors)
    known = means[np.isfinite(means)]
    by_point = {name: area_under_curve(errors[:, k], limit) for k, name in enumerate(names)}
    return {
        "auc": area_under_curve(errors, limit),
        "pck": pck(errors, limit),
        "nme": float(known.mean()) if known.size else float("nan"),
        "failure_rate": failure_rate(means, limit),
        "by_class": {name: value for name, value in by_point.items() if value == value},
    }


def _words(lengths: Sequence[Length], errors: Mapping[str, np.ndarray]) -> Iterator[str]:
    main = lengths[0]
    yield f"{main.name}: errors are divided by the {main.words}; AUC, PCK and failures up to {main.limit} of it"
    without = int(np.isnan(errors[main.name]).all(1).sum())
    if without:
        yield f"{without} of {len(errors[main.name])} objects have no such distance and are left out of these figures"
    lost = int(np.isinf(errors[main.name]).any(1).sum())
    if lost:
        yield f"of {lost} objects a labelled point was not found: they have no mean error, and count as failures"


def _resampling(errors: np.ndarray, limit: float, image_of: np.ndarray, images: int) -> Any:
    """The main figure in resamples: AUC is a mean over points, so images only have to be weighed."""
    known = ~np.isnan(errors)
    near = np.where(known, np.maximum(0.0, 1.0 - np.where(known, errors, 0.0) / limit), 0.0)
    totals, counts = np.zeros((images, errors.shape[1])), np.zeros((images, errors.shape[1]))
    np.add.at(totals, image_of, near)
    np.add.at(counts, image_of, known)
    return functools.partial(_mean_auc, totals, counts)


def _mean_auc(totals: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> Resampled:
    """totals and counts (images, K), weights (b, images)."""
    by_point = np.full((len(weights), totals.shape[1]), np.nan)
    total, count = weights @ totals, weights @ counts
    np.divide(total, count, out=by_point, where=count > 0)
    overall = np.full(len(weights), np.nan)
    np.divide(total.sum(1), count.sum(1), out=overall, where=count.sum(1) > 0)
    return Resampled(overall, by_point, np.zeros((len(weights), 0)))


def _coco(labels: LabelSet, rows: Sequence[Row]) -> dict[str, Any]:
    """The truth in COCO's terms, in our own pixels."""
    annotations: list[dict[str, Any]] = []
    columns = ("labels", "boxes_xyxy", "areas", "keypoint_xyv", "is_crowd")
    for number, row in enumerate(rows, start=1):
        for label, (x0, y0, x1, y1), area, points, crowd in zip(*(row[name] for name in columns), strict=True):
            flat = [value for point in points or [(0.0, 0.0, 0.0)] * len(labels.points or ()) for value in point]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": label, "iscrowd": int(crowd),
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "keypoints": flat,
                    "num_keypoints": sum(v > 0 for v in flat[2::3]),
                }
            )  # fmt: skip
    images = [{"id": number, "height": row["height"], "width": row["width"]} for number, row in enumerate(rows, 1)]
    categories = [{"id": each.id, "name": each.name} for each in labels.classes]
    return {"images": images, "annotations": annotations, "categories": categories}
