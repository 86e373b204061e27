"""The kind `panoptic`: things and stuff, every pixel in at most one of them.

Class ids of things are 1 .. T, those of stuff follow. Void pixels, those of crowds and those of no segment are not
labelled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from infra.errors import DatasetError, UsageError
from modelkit import ClassInfo, Predictor, VisionModel
from modelkit.metrics import PanopticQuality, panoptic_array
from modelkit.metrics.panoptic import DIVISOR
from tasks.evaluation.bootstrap import nanmean
from tasks.evaluation.evaluate import Row, predictions
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Kind, Resampled
from tasks.products.segments.objects import Target, mask_target
from tasks.products.segments.painting import IGNORE, label_map, pixels_of_mask
from tasks.training.examples import Example


def panoptic_target(example: Example, num_things: int) -> Target:
    """As for instances, of the things (class ids 1 .. ``num_things``), and ``semantic``: the class of every pixel.

    Where objects overlap, things lie upon stuff.
    """
    things = tuple(each for each in example.objects if each.label <= num_things)
    stuff = tuple(each for each in example.objects if each.label > num_things)
    in_order = (*stuff, *things)
    semantic = label_map([each.label for each in in_order], [each.rle for each in in_order], example.size_hw, None)
    if example.void_rle is not None:
        semantic[pixels_of_mask(example.void_rle, example.size_hw)] = IGNORE
    return mask_target(dataclasses.replace(example, objects=things)) | {"semantic": torch.from_numpy(semantic)}


def _target_of(model: VisionModel) -> Callable[[Example], Target]:
    return functools.partial(panoptic_target, num_things=int(model.num_things))  # type: ignore[arg-type]


def count_classes(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """``num_things`` and ``num_stuff``. Raises UsageError for ids that are not numbered things first."""
    things, stuff = (sorted(each.id for each in classes if each.is_thing is thing) for thing in (True, False))
    if things + stuff != list(range(1, len(classes) + 1)):
        raise UsageError(
            f"of a panoptic model things are numbered from 1 on and stuff after them; here things are {things} and "
            f"stuff {stuff}",
            hint="Number the categories of the labels so.",
        )
    return {"num_things": len(things), "num_stuff": len(stuff)}


def judge(predictor: Predictor, labels: LabelSet) -> Judgement:
    """Panoptic quality (Kirillov et al. 2019), mean over classes."""
    classes, rows = predictor.weights.classes, labels.table.to_pylist()
    things = {each.id for each in classes if each.is_thing}
    place = {each.id: k for k, each in enumerate(classes)}
    total, objects = PanopticQuality(things), 0
    segments = np.zeros((len(rows), len(place), 4))
    for image, (row, found) in enumerate(predictions(predictor, rows)):
        truth, answer = panoptic_truth(row, things), panoptic_array(found)
        one = PanopticQuality(things)
        for quality in (one, total):
            quality.add(truth, answer)
        for label, counts in one.counts().items():
            segments[image, place[label]] = counts
        objects += len(row["labels"])
    return Judgement(
        kind=KIND.name,
        figures={"panoptic": _figures(total, predictor.weights.class_names())},
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in classes),
        num_objects=objects,
        resample=functools.partial(mean_panoptic_quality, segments),
    )


def _figures(quality: PanopticQuality, names: Mapping[int, str]) -> dict[str, Any]:
    scores = quality.scores()
    return {
        "pq": scores.all.pq,
        "sq": scores.all.sq,
        "rq": scores.all.rq,
        "pq_things": scores.things.pq,
        "pq_stuff": scores.stuff.pq,
        "by_class": {names[k]: each.pq for k, each in scores.by_class.items()},
    }


def panoptic_truth(row: Row, things: Collection[int]) -> np.ndarray:
    """(H, W) panoptic array of a labelled item with its crowds; the first object has a pixel that two claim.

    Crowds lie below objects, void above everything.

    Raises:
        DatasetError: an object without a mask.
    """
    size_hw = (row["height"], row["width"])
    array = np.zeros(size_hw, np.int64)
    columns = zip(row["labels"], row["rles"], row["is_crowd"], range(1, len(row["labels"]) + 1), strict=True)
    for label, mask, crowd, number in sorted(columns, key=lambda each: each[2]):
        if mask is None:
            raise DatasetError(f"{row['image_id']} has an object without a mask: no panoptic truth")
        value = label * DIVISOR + (number if label in things else 0)
        array[pixels_of_mask(mask, size_hw) & (array == 0)] = -value if crowd else value
    if row["void_rle"] is not None:
        array[pixels_of_mask(row["void_rle"], size_hw)] = 0
    return array


def mean_panoptic_quality(segments: np.ndarray, weights: np.ndarray) -> Resampled:
    """Panoptic quality (eq. 1) in resamples; classes without truth and prediction are left out of the mean.

    Args:
        segments: (images, classes, 4): sum of the IoUs of matched segments, matched, predicted only, true only.
        weights: (b, images).
    """
    total = np.einsum("bi,ikf->bkf", weights.astype(np.float64), segments.astype(np.float64))
    iou, matched, extra, missed = np.moveaxis(total, 2, 0)
    counted = matched + (extra + missed) / 2
    by_class = np.divide(iou, counted, out=np.full(iou.shape, np.nan), where=counted > 0)
    return Resampled(nanmean(by_class, axis=1), by_class, np.zeros((len(weights), 0)))


def _digitscape_panoptic(classes: Sequence[ClassInfo]) -> Mapping[str, Any]:
    """Panoptic FPN around the shipped detector's architecture."""
    from modelkit.training.panoptic import recipe_of  # brings its judges along

    config = {**recipe_of("panoptic_fpn").model}
    return {"architecture": config.pop("name"), "config": config}


KIND = Kind(
    name="panoptic",
    product="segments",
    target_of=_target_of,
    judge=judge,
    recipes={"digitscape_panoptic": _digitscape_panoptic},
    default_recipe="digitscape_panoptic",
    class_counts=count_classes,
    words={"pq_things": "PQ of things", "pq_stuff": "PQ of stuff"},
)
