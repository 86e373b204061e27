"""How good what finds objects is: average precision of boxes and masks, and how many are right.

COCO's rules judge: at most 100 detections of a class in an image, boxes and areas as the labels state them; crowds
count neither way.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from modelkit import Instances, Predictor, rle
from modelkit.metrics.counting import accuracy_of
from modelkit.metrics.precision import Kind as Matched
from modelkit.metrics.precision import coco_evaluator, coco_results, precision_of
from tasks.evaluation.average_precision import AveragePrecision
from tasks.evaluation.claims import ObjectEvidence
from tasks.evaluation.coco_shapes import filled_box
from tasks.evaluation.evaluate import Row, predictions
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Resampled

MOST_JUDGED = 100
"""Detections of a class in an image that count in COCO's AP."""


def _as_it_is(found: Any) -> Instances:
    assert isinstance(found, Instances)
    return found


def judge_objects(
    predictor: Predictor,
    labels: LabelSet,
    *,
    with_masks: bool,
    objects_of: Callable[[Any], Instances] = _as_it_is,
) -> Judgement:
    """AP of masks (where they are judged and any object has one) and of boxes, and how many of the former are right.

    Where only some objects have masks, the others count neither way in AP of masks, as crowds that fill their boxes.

    Args:
        predictor, labels: under the same class ids.
        with_masks: whether masks are judged; else boxes alone.
        objects_of: what a model finds in an image -> the objects that are judged, where its carrier is another one.
    """
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": each.id, "name": each.name} for each in labels.classes],
    }
    found: list[dict[str, Any]] = []
    seen: list[Instances] = []
    limits: list[int] = []
    rows = labels.table.to_pylist()
    for number, (row, result) in enumerate(predictions(predictor, rows), start=1):
        instances = objects_of(result)
        truth["images"].append({"id": number, "height": row["height"], "width": row["width"]})
        truth["annotations"] += _annotations(number, row, len(truth["annotations"]) + 1)
        found += coco_results(number, instances)
        seen.append(instances)
        limits += [] if instances.at_limit is None else [instances.at_limit]
    bare = sum("segmentation" not in each for each in truth["annotations"])
    has_masks = with_masks and (bare < len(truth["annotations"]) or not bare)
    judged: dict[str, tuple[dict[str, Any], Matched]] = {"box": (truth, "bbox")}
    if has_masks:
        judged = {"mask": (_with_all_masks(truth), "segm"), **judged}
    figures = {name: asdict(precision_of(known, found, matched)) for name, (known, matched) in judged.items()}
    known, matched = next(iter(judged.values()))
    return Judgement(
        kind=predictor.weights.kind,
        figures={**figures, "counts": asdict(accuracy_of(known, found, matched))},
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in labels.classes),
        num_objects=len(truth["annotations"]),
        resample=_Resampling(known, matched, found or [_nothing(truth)]),
        notes=(
            *(_notes_on_masks(bare, len(truth["annotations"])) if with_masks else ()),
            *_notes_on_limits(limits, rows),
        ),
        evidence=ObjectEvidence(labels, seen, predictor.weights.class_names(), with_masks),
    )


def _notes_on_masks(bare: int, objects: int) -> Iterator[str]:
    if bare and bare == objects:
        yield "no object has a mask, so that only boxes are judged"
    elif bare:
        yield f"{bare} of {objects} objects have a box but no mask: they count neither way in AP of masks"


def _notes_on_limits(limits: Sequence[int], rows: Sequence[Row]) -> Iterator[str]:
    """What limits on the number of objects may have cost.

    Args:
        limits: the model's, of each image in which it found as many objects as it may.
        rows: of the label set.
    """
    if limits:
        yield (
            f"in {len(limits)} of {len(rows)} images the model found as many objects as it may ({max(limits)}), so "
            "there can be more: --detections N allows N"
        )
    full = sum(max(Counter(row["labels"]).values(), default=0) > MOST_JUDGED for row in rows)
    if full:
        yield (
            f"{full} images have more than {MOST_JUDGED} labelled objects of one class: AP, as COCO defines it, counts "
            f"only the {MOST_JUDGED} surest detections of a class in an image, so not all of them can be found"
        )


def _with_all_masks(truth: dict[str, Any]) -> dict[str, Any]:
    sizes = {each["id"]: (each["height"], each["width"]) for each in truth["images"]}
    return truth | {"annotations": [_masked(each, sizes[each["image_id"]]) for each in truth["annotations"]]}


def _masked(annotation: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    if "segmentation" in annotation:
        return annotation
    x, y, width, height = annotation["bbox"]
    filled = rle.encode(filled_box((x, y, x + width, y + height), size_hw))
    return annotation | {"segmentation": {"size": list(size_hw), "counts": filled}, "iscrowd": 1}


class _Resampling:
    """Resamples of AP; images are matched once, when the first is asked for, since most judgements never are."""

    def __init__(self, truth: dict[str, Any], matched: Matched, found: Sequence[dict[str, Any]]) -> None:
        self._asked = truth, found, matched

    def __call__(self, weights: np.ndarray) -> Resampled:
        return self._metric(weights)

    @functools.cached_property
    def _metric(self) -> AveragePrecision:
        evaluator = coco_evaluator(*self._asked)
        assert evaluator is not None  # there is something to count
        return AveragePrecision(evaluator)


def _nothing(truth: dict[str, Any]) -> dict[str, Any]:
    """A find of no area and no score, so that pycocotools has something to count where a model found nothing at all."""
    image = truth["images"][0]
    empty = rle.encode(np.zeros((image["height"], image["width"]), np.uint8))
    return {
        "image_id": image["id"],
        "category_id": truth["categories"][0]["id"],
        "score": 0.0,
        "bbox": [0.0, 0.0, 0.0, 0.0],
        "segmentation": {"size": [image["height"], image["width"]], "counts": empty},
    }


def _annotations(image_id: int, row: Row, first_id: int) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    columns = ("labels", "boxes_xyxy", "areas", "rles", "is_crowd")
    for label, (x0, y0, x1, y1), area, mask, crowd in zip(*(row[name] for name in columns), strict=True):
        annotation = {
            "id": first_id + len(annotations),
            "image_id": image_id,
            "category_id": label,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd),
        }
        if mask is not None:
            annotation["segmentation"] = {"size": [row["height"], row["width"]], "counts": mask}
        annotations.append(annotation)
    return annotations
