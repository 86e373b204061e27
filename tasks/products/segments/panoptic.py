"""The kind `panoptic`: things and stuff, every pixel in at most one of them.

Class ids of things are 1 .. T, those of stuff follow. Void pixels and those of no segment are not labelled; crowds are
not learnt from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from infra.errors import UsageError
from modelkit import ClassInfo, Predictor, VisionModel, rle
from modelkit.metrics import PanopticQuality, panoptic_array
from tasks.evaluation.bootstrap import nanmean
from tasks.evaluation.evaluate import predictions
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Kind, Resampled
from tasks.products.segments import digitscape, photographs
from tasks.products.segments.clips import panoptic_truth, video_figures
from tasks.products.segments.judged_panels import MapEvidence, panoptic_panels
from tasks.products.segments.loop_segments import SEGMENTS
from tasks.products.segments.objects import Target, mask_target, wants_tracks
from tasks.products.segments.painting import IGNORE, label_map
from tasks.products.segments.remarks import detector_remarks
from tasks.training.examples import Example


def panoptic_target(example: Example, num_things: int, *, tracked: bool = False) -> Target:
    """As for instances, of the things (class ids 1 .. ``num_things``), and ``semantic``: the class of every pixel.

    Where objects overlap, things lie upon stuff.
    """
    things = tuple(each for each in example.objects if each.label <= num_things)
    stuff = tuple(each for each in example.objects if each.label > num_things)
    in_order = (*stuff, *things)
    semantic = label_map([each.label for each in in_order], [each.rle for each in in_order], example.size_hw, None)
    if example.void_rle is not None:
        semantic[rle.decode(example.void_rle, example.size_hw)] = IGNORE
    target = mask_target(dataclasses.replace(example, objects=things), tracked=tracked)
    return target | {"semantic": torch.from_numpy(semantic)}


def _target_of(model: VisionModel) -> Callable[[Example], Target]:
    num_things = int(model.num_things)  # type: ignore[arg-type]
    return partial(panoptic_target, num_things=num_things, tracked=wants_tracks(model))


def count_classes(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """``num_things`` and ``num_stuff``. Raises UsageError for ids that are not numbered things first."""
    if any(old != new for old, new in numbered(classes).items()):
        things, stuff = (sorted(each.id for each in classes if each.is_thing is thing) for thing in (True, False))
        raise UsageError(
            f"of a panoptic model things are numbered from 1 on and stuff after them; here things are {things} and "
            f"stuff {stuff}",
            hint="Number the categories of the labels so.",
        )
    things_only = [each for each in classes if each.is_thing]
    return {"num_things": len(things_only), "num_stuff": len(classes) - len(things_only)}


def numbered(classes: Sequence[ClassInfo]) -> dict[int, int]:
    """Old id -> new one: things from 1 on in the order of their ids, then stuff."""
    ordered = sorted(classes, key=lambda each: (not each.is_thing, each.id))
    return {each.id: number for number, each in enumerate(ordered, 1)}


def judge(predictor: Predictor, labels: LabelSet) -> Judgement:
    """Panoptic quality (Kirillov et al. 2019), mean over classes; of a video model on clips also what it tracks."""
    classes, rows = predictor.weights.classes, labels.table.to_pylist()
    things = {each.id for each in classes if each.is_thing}
    place = {each.id: k for k, each in enumerate(classes)}
    total, seen, objects = PanopticQuality(things), [], 0
    segments = np.zeros((len(rows), len(place), 4))
    for image, (row, found) in enumerate(predictions(predictor, rows)):
        truth, answer = panoptic_truth(row, things), panoptic_array(found)
        one = PanopticQuality(things)
        for quality in (one, total):
            quality.add(truth, answer)
        for label, counts in one.counts().items():
            segments[image, place[label]] = counts
        objects += len(row["labels"])
        seen.append(found)
    figures = {"panoptic": _figures(total, predictor.weights.class_names())}
    if getattr(predictor.model, "tracks", False):
        figures |= video_figures(predictor, rows, things)
    return Judgement(
        kind=KIND.name,
        figures=figures,
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in classes),
        num_objects=objects,
        resample=partial(mean_panoptic_quality, segments),
        evidence=MapEvidence(labels, seen, predictor.weights.class_names(), segments),
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


KIND = Kind(
    name="panoptic",
    product="segments",
    target_of=_target_of,
    judge=judge,
    recipes={
        "digitscape_panoptic": digitscape.panoptic,
        "digitscape_panoptic_fpn": digitscape.panoptic_fpn,
        "digitscape_upsnet": digitscape.upsnet,
        "digitscape_vpsnet": digitscape.vpsnet,
    },
    default_recipe="digitscape_panoptic",
    class_counts=count_classes,
    suits=lambda seen: bool(seen.things) and bool(seen.stuff),
    derived=photographs.panoptic,
    remarks=detector_remarks,
    numbered=numbered,
    words={"vpq": "video PQ", "pq_things": "PQ of things", "pq_stuff": "PQ of stuff"},
    panels=panoptic_panels,
    loop=SEGMENTS,
)
