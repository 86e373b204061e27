"""The kind `semantic`: a class for every pixel.

Pixels of no object are background where the model has one, else nobody labelled them. Void pixels are never labelled,
and neither are those of a box without a mask, for nobody said which of them are the object's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from modelkit import Predictor, VisionModel, rle
from modelkit.metrics import SemanticQuality
from tasks.evaluation.bootstrap import nanmean
from tasks.evaluation.evaluate import predictions
from tasks.labels.class_map import is_background
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Kind, Resampled
from tasks.products.segments import digitscape, photographs
from tasks.products.segments.judged_panels import MapEvidence, semantic_panels
from tasks.products.segments.loop_pixels import PIXELS
from tasks.products.segments.objects import Target, count_classes
from tasks.products.segments.painting import IGNORE, label_map, truth_map, void_boxes
from tasks.training.examples import Example


def semantic_target(example: Example, background: int | None) -> Target:
    """``semantic``, ``semantic_weights``, ``abstaining``: objects painted one over the other on the background."""
    labels, rles = [each.label for each in example.objects], [each.rle for each in example.objects]
    semantic = label_map(labels, rles, example.size_hw, background)
    bare = [each.box_xyxy for each in example.objects if each.rle is None]
    void_boxes(semantic, [*bare, *example.ignore_boxes], background)
    weights = np.ones(example.size_hw, np.float32)
    for each in example.objects:
        if each.rle is not None:
            weights[rle.decode(each.rle, example.size_hw)] = each.class_weight
    if example.unsure_rle is not None:
        weights[rle.decode(example.unsure_rle, example.size_hw)] = 0
    if example.void_rle is not None:
        semantic[rle.decode(example.void_rle, example.size_hw)] = IGNORE
    return {
        "semantic": torch.from_numpy(semantic),
        "semantic_weights": torch.from_numpy(weights),
        "abstaining": torch.tensor(sorted(example.abstaining), dtype=torch.int64),
    }


def _target_of(model: VisionModel) -> Callable[[Example], Target]:
    return functools.partial(semantic_target, background=getattr(model, "background", 0))


def judge(predictor: Predictor, labels: LabelSet) -> Judgement:
    """Mean IoU over classes."""
    background = _background_of(predictor)
    num_classes = max(2, int(predictor.model.config["num_classes"]))  # one class is told from the background
    per_image, seen, objects = [], [], 0
    total = SemanticQuality(num_classes)
    rows = labels.table.to_pylist()
    for row, instances in predictions(predictor, rows):
        quality = SemanticQuality(num_classes)
        assert instances.rles is not None  # semantic models always have maps
        predicted = label_map(instances.labels.tolist(), instances.rles, instances.size_hw, background or 0)
        quality.add(truth_map(row, background), predicted)
        total.confusion += quality.confusion
        per_image.append(quality.confusion)
        seen.append(instances)
        objects += len(row["labels"])
    scores, known = total.scores(), predictor.weights.class_names()
    names = [known.get(k, "background" if k == background else f"class {k}") for k in range(num_classes)]
    figures = {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "by_class": {names[k]: value for k, value in scores.by_class.items()},
    }
    confusion = np.stack(per_image)
    return Judgement(
        kind=KIND.name,
        figures={"semantic": figures},
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(names),
        num_objects=objects,
        resample=functools.partial(mean_iou, confusion),
        evidence=MapEvidence(labels, seen, dict(enumerate(names)), confusion),
    )


def _background_of(predictor: Predictor) -> int | None:
    """The model's background, which may be a class of its own by that name: label sets never have such a class."""
    own = getattr(predictor.model, "background", None)
    named = [each.id for each in predictor.weights.classes if is_background(each.name)]
    return own if own is not None else next(iter(named), None)


def mean_iou(confusion: np.ndarray, weights: np.ndarray) -> Resampled:
    """Mean intersection over union in resamples; classes without truth and prediction are left out of the mean.

    Args:
        confusion: (images, classes, classes) pixels: rows truth, columns prediction; unlabelled ones in none.
        weights: (b, images).
    """
    total = np.einsum("bi,ijk->bjk", weights.astype(np.float64), confusion.astype(np.float64))
    both = np.diagonal(total, axis1=1, axis2=2)
    either = total.sum(axis=1) + total.sum(axis=2) - both
    by_class = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
    return Resampled(nanmean(by_class, axis=1), by_class, np.zeros((len(weights), 0)))


KIND = Kind(
    name="semantic",
    product="segments",
    target_of=_target_of,
    judge=judge,
    recipes={
        "digitscape_unet": digitscape.unet,
        "digitscape_deeplabv3plus": digitscape.deeplabv3plus,
        "digitscape_fcn": digitscape.fcn,
        "digitscape_unet_decoder": digitscape.unet_decoder,
    },
    default_recipe="digitscape_unet",
    class_counts=count_classes,
    suits=lambda seen: not seen.things and bool(seen.stuff),
    derived=photographs.semantic,
    words={"miou": "mean IoU"},
    panels=semantic_panels,
    loop=PIXELS,
)
