"""Recipes for photographs and other real pictures, derived from what a label set is like.

All begin from an EfficientNet-Lite0 that learnt on ImageNet. How large images are to the network, which windows are cut
from them, anchors, how many objects an image may have and which classes are rare come from the labels
(``tasks.training.inspection``); ``visionmill inspect`` shows the recipe, and a file of it can be changed and trained.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modelkit import ClassInfo
from modelkit.layers import EfficientNetLiteBackbone
from modelkit.training.transfer import IMAGENET
from tasks.training.inspection import Inspection

Values = dict[str, Any]

BACKBONE = "efficientnet_lite0"
LARGEST_SIDE = 640
"""Pixels; larger images are reduced to it."""
WINDOW = 256
"""Pixels; a step of training looks at windows of at most this side."""
_SEEN_PX = 16.0  # side that the smaller tenth of the objects shall have to the network
_LARGEST_FACTOR = 2.0  # enlarging further shows nothing new
_LEVELS = 4  # maps of strides 4 to 32
_FOUND_IOU = 0.5  # an anchor that fits an object so well can learn it
_PER_IMAGE = 100  # detections, as COCO judges them
_HANDED = ("left", "right")


def semantic(seen: Inspection) -> Values:
    """DeepLabV3+ at output stride 16, with Dice and cross-entropy that do not forget rare classes."""
    has_background = not seen.stuff
    head = {"name": "deeplabv3plus_head", "channels": 96, "low_channels": 24, "decoder_convs": 2, "separable": True}
    weights = class_weights(seen, background=has_background)
    factor = factor_of(seen, for_objects=False)
    return {
        "name": "photographs_semantic",
        "architecture": "deeplabv3plus",
        "config": {
            "backbone": {"name": BACKBONE, "out": ["c2", "c4"]},
            "head": head,
            "losses": {"dice": 1.0, "dice_by_class": True, "class_weights": weights},
            "transform": transform(seen, factor) | {"padding": "pad"},
            "background": 0 if has_background else None,
        },
        **_training(seen, factor, zoom=(0.5, 2.0)),
        "rate_scales": {"network.backbone.": 0.2},
    }


def instance(seen: Inspection) -> Values:
    """Mask R-CNN on four maps, strides 4 to 32, with anchors of the objects' sizes and proportions."""
    return _detector(seen, "photographs_instance", "mask_rcnn", with_masks=True)


def detection(seen: Inspection) -> Values:
    """Faster R-CNN on the same maps and anchors."""
    return _detector(seen, "photographs_detection", "faster_rcnn", with_masks=False)


def panoptic(seen: Inspection) -> Values:
    """Panoptic FPN: the detector with masks, and a semantic head on all maps."""
    values = _detector(seen, "photographs_panoptic", "panoptic_fpn", with_masks=True)
    width = float(np.prod(seen.median_hw)) * factor_of(seen) ** 2
    values["config"] |= {
        "semantic": {"name": "semantic_fpn", "channels": 64},
        "fusion": {"stuff_area": max(16, round(width * 0.002))},
        "loss_weights": {"loss_semantic": 1.0, "loss_panoptic": 0.5},
    }
    return values | {"rate_scales": {"detector.backbone.": 0.2}}


def _detector(seen: Inspection, name: str, architecture: str, *, with_masks: bool) -> Values:
    factor = factor_of(seen)
    sizes, ratios = anchors_of(seen, factor)
    most = detections_of(seen)
    heads: dict[str, Any] = {
        "box": {"name": "box_head", "fc_channels": [256, 256], "detections_per_image": most},
    }
    if with_masks:
        heads["mask"] = {"name": "mask_head", "channels": [96] * 4, "predictor_channels": 96}
    return {
        "name": name,
        "architecture": architecture,
        "config": {
            "backbone": {"name": BACKBONE},
            "neck": {"name": "fpn", "channels": 96, "extra": None},
            "rpn": {
                "name": "rpn", "anchor_sizes": [[size] for size in sizes], "aspect_ratios": ratios,
                "foreground_iou": 0.6, "pre_nms_train": 1000, "pre_nms_test": max(500, 3 * most),
                "post_nms_train": 500, "post_nms_test": max(300, 2 * most),
            },
            "heads": heads,
            "sampler": {"iou_threshold": 0.5, "per_image": 128, "positive_fraction": 0.25},
            "transform": transform(seen, factor),
        },
        **_training(seen, factor, zoom=(0.7, 1.5)),
        "rate_scales": {"backbone.": 0.2},
        "repeat_threshold": 0.1 if len(seen.things) > 1 else 0.0,
    }  # fmt: skip


def factor_of(seen: Inspection, *, for_objects: bool = True) -> float:
    """Pixels of the network for a pixel of the usual image.

    Large images are reduced. Where objects would be smaller than can be seen, images are enlarged, as far as that fits.
    """
    limit = LARGEST_SIDE / max(seen.median_hw)
    if not for_objects or not len(seen.areas):
        return min(1.0, limit)
    small = float(np.quantile(np.sqrt(np.maximum(seen.areas, 1.0)), 0.1))
    return min(limit, max(1.0, min(_SEEN_PX / small, _LARGEST_FACTOR)))


def transform(seen: Inspection, factor: float) -> Values:
    """Options of ``ImageTransform``: the shorter side of the usual image times the factor; windows stay as they are."""
    short, long = min(seen.median_hw) * factor, float(seen.sizes_hw.max()) * factor
    return {
        "min_size": max(32, round(short)),
        "max_size": max(WINDOW, round(min(long, 2 * LARGEST_SIDE)), round(short)),
        "train_min_sizes": [min(window_hw(seen, factor))],
        "mean": list(EfficientNetLiteBackbone.imagenet_mean),
        "std": list(EfficientNetLiteBackbone.imagenet_std),
    }


def _training(seen: Inspection, factor: float, *, zoom: tuple[float, float]) -> Values:
    rows, columns = window_hw(seen, factor)
    cut = {
        "name": "random_crop",
        "height": rows,
        "width": columns,
        "low": zoom[0],
        "high": zoom[1],
        "short_side": transform(seen, factor)["min_size"],
    }
    colour = {"name": "colour_jitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}
    mirror = [{"name": "horizontal_flip"}] if may_be_mirrored(seen.classes) else []
    weak = [*mirror, cut, colour]
    return {
        "initial": IMAGENET,
        "batch_size": 8,
        "loop": {"learning_rate": 1e-3, "warmup_steps": 50, "weight_decay": 0.02},
        "labelled": {"augmentation": weak},
        "unlabelled": {"augmentation": [*mirror, cut, {"name": "rand_augment", "photometric_only": True},
                                        {"name": "cutout"}]},
    }  # fmt: skip


def window_hw(seen: Inspection, factor: float) -> tuple[int, int]:
    """Height and width of what a step looks at, network's pixels: multiples of 32, no more than the image needs."""
    rows, columns = (min(WINDOW, max(64, math.ceil(side * factor / 32) * 32)) for side in seen.median_hw)
    return rows, columns


def may_be_mirrored(classes: tuple[ClassInfo, ...]) -> bool:
    """Whether mirroring keeps what classes mean: not where names tell left from right, or are single characters."""
    words = {word for each in classes for word in each.name.lower().replace("-", "_").replace(" ", "_").split("_")}
    return not words & set(_HANDED) and not any(len(each.name) == 1 for each in classes)


def class_weights(seen: Inspection, *, background: bool) -> list[float]:
    """Weight of each class id in the cross-entropy: the square root of (median share / its share), 0.5 to 4.

    Median-frequency balancing (Eigen and Fergus 2015), damped: in full it makes rare classes flood their surroundings.
    """
    shares = {each.label: each.pixels for each in seen.counts if each.pixels > 0}
    if background:
        shares[0] = max(1.0 - sum(shares.values()), 1e-6)
    usual = float(np.median(list(shares.values()))) if shares else 1.0
    weights = [1.0] * (max([each.id for each in seen.classes]) + 1)
    for label, share in shares.items():
        weights[label] = round(min(4.0, max(0.5, math.sqrt(usual / share))), 3)
    return weights


def anchors_of(seen: Inspection, factor: float) -> tuple[list[int], list[float]]:
    """A side for each map, and ratios of height to width that all share, from the objects' boxes.

    Sides are spread evenly, on a logarithmic scale, over the middle 90 % of the objects; ratios are three quantiles.
    """
    boxes = _thing_boxes(seen) * factor
    if not len(boxes):
        return [16, 32, 64, 128], [0.5, 1.0, 2.0]
    sides = np.sqrt(boxes.prod(1))
    low, high = np.quantile(sides, 0.05), np.quantile(sides, 0.95)
    low, high = max(8.0, low), max(low * 2, high, 16.0)
    spread = np.exp(np.linspace(math.log(low), math.log(high), 2 * _LEVELS + 1))[1::2]
    ratios = np.quantile(boxes[:, 1] / boxes[:, 0], [0.1, 0.5, 0.9])
    return [max(4, round(side)) for side in spread], sorted({round(float(ratio), 2) for ratio in ratios})


def anchor_fit(seen: Inspection, factor: float, sizes: list[int], ratios: list[float]) -> float:
    """Share of the objects that an anchor at their place overlaps with an IoU of at least one half."""
    boxes = _thing_boxes(seen) * factor
    if not len(boxes):
        return 1.0
    anchors = np.array([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    common = np.minimum(boxes[:, None], anchors[None]).prod(2)
    union = boxes.prod(1)[:, None] + anchors.prod(1)[None] - common
    return float(((common / union).max(1) >= _FOUND_IOU).mean())


def detections_of(seen: Inspection) -> int:
    """How many objects an image may have: COCO's 100, or a third more than the fullest labelled image."""
    return max(_PER_IMAGE, math.ceil(float(seen.per_image.max(initial=0)) * 4 / 3))


def _thing_boxes(seen: Inspection) -> np.ndarray:
    """(objects, 2) width and height of countable objects of at least a pixel, source pixels."""
    fat = (seen.boxes_wh >= 1).all(1) & seen.is_thing
    return seen.boxes_wh[fat]
