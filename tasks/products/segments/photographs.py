"""Recipes for photographs and other real pictures, derived from what a label set is like.

All begin from features of ImageNet: small models from an EfficientNet-Lite0, usual ones from a ResNet-50. How large
images are to the network, which windows are cut from them, anchors, how many objects an image may have, which classes
are rare and how long training takes come from the labels (``tasks.training.inspection``); ``visionmill inspect`` shows
the recipe, and a file of it can be changed and trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelkit import ClassInfo
from modelkit.layers import EfficientNetLiteBackbone
from modelkit.layers.backbones import Backbone
from modelkit.training.transfer import IMAGENET
from tasks.products.segments.remarks import thing_boxes
from tasks.training.inspection import Inspection

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is, and what it looks at.

    Args:
        backbone: as configured; it gives maps c2 to c5.
        mean, std: of the images that it learnt from.
        largest_side: pixels; larger images are reduced to it.
        window: pixels; a step of training looks at windows of at most this side.
        channels: of the pyramid's maps, of heads on boxes, and of DeepLab's head.
        low_channels: of DeepLab's fine map.
        hidden: units of the two layers that tell boxes apart.
        regions: of a window that a step learns from; masks of a quarter of them take most of a step.
        pixel_rate: learning rate of DeepLab at its peak. pixel_backbone: factor on it for what was learnt on ImageNet.
        early: modules of the backbone that training leaves as ImageNet taught them: edges and spots are the same
            everywhere, and the finest layers take half of a step of DeepLab's network. pixel_early: those of DeepLab.
    """

    backbone: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    largest_side: int
    window: int
    channels: int
    low_channels: int
    hidden: int
    regions: int
    pixel_rate: float
    pixel_backbone: float
    early: Sequence[str] = ()
    pixel_early: Sequence[str] = ()


SIZES = {
    "small": Size(
        {"name": "efficientnet_lite0"},
        EfficientNetLiteBackbone.imagenet_mean,
        EfficientNetLiteBackbone.imagenet_std,
        largest_side=640, window=256, channels=96, low_channels=24, hidden=256, regions=64, pixel_rate=6e-3,
        pixel_backbone=0.1, early=("stem", "blocks.0", "blocks.1"),
        pixel_early=("stem", "blocks.0", "blocks.1", "blocks.2"),
    ),
    "usual": Size(
        {"name": "resnet", "depth": 50},
        Backbone.imagenet_mean,
        Backbone.imagenet_std,
        largest_side=1333, window=512, channels=256, low_channels=48, hidden=1024, regions=128,
        pixel_rate=1e-3, pixel_backbone=0.2,
    ),
}  # fmt: skip
BATCH = 8
_EPOCHS_OF_PIXELS, _EPOCHS_OF_OBJECTS = 60, 22
_STEPS = (500, 3000)
_SEEN_PX = 16.0  # side that the smaller tenth of the objects shall have to the network
_LARGEST_FACTOR = 2.0  # enlarging further shows nothing new
_MAPS = ("c2", "c3", "c4", "c5")  # strides 4 to 32
_STRIDES_OF_OBJECT = 8  # a map serves objects with sides of so many of its strides (Lin et al. 2017)
_PER_IMAGE = 100  # detections, as COCO judges them
_HANDED = ("left", "right")
_STRONG = ({"name": "rand_augment", "photometric_only": True}, {"name": "cutout"})


def semantic(seen: Inspection, size: str = "small") -> Values:
    """DeepLabV3+ at output stride 16, with Dice and cross-entropy that do not forget rare classes."""
    of, has_background = SIZES[size], not seen.stuff
    scale = Scale.of(seen, of, for_objects=False)
    return {
        "name": "photographs_semantic",
        "architecture": "deeplabv3plus",
        "config": {
            "backbone": {**of.backbone, "out": ["c2", "c4"]},
            "head": {
                "name": "deeplabv3plus_head", "channels": of.channels, "low_channels": of.low_channels,
                "decoder_convs": 2, "separable": True,
            },
            "losses": {
                "dice": 1.0, "dice_by_class": True, "class_weights": class_weights(seen, background=has_background),
            },
            "transform": scale.transform() | {"padding": "pad"},
            "background": 0 if has_background else None,
        },
        **_training(seen, scale, zoom=(0.5, 2.0), epochs=_EPOCHS_OF_PIXELS, rate=of.pixel_rate, noise=_STRONG),
        "rate_scales": {"network.backbone.": of.pixel_backbone},
        "frozen": [f"network.backbone.{module}" for module in of.pixel_early],
    }  # fmt: skip


def instance(seen: Inspection, size: str = "small") -> Values:
    """Mask R-CNN on maps of strides 4 to 16 or 32, with anchors of the objects' sizes and proportions."""
    return _detector(seen, SIZES[size], "photographs_instance", "mask_rcnn", with_masks=True)


def detection(seen: Inspection, size: str = "small") -> Values:
    """Faster R-CNN on the same maps and anchors."""
    return _detector(seen, SIZES[size], "photographs_detection", "faster_rcnn", with_masks=False)


def panoptic(seen: Inspection, size: str = "small") -> Values:
    """Panoptic FPN: the detector with masks, and a semantic head on all maps."""
    of = SIZES[size]
    values = _detector(seen, of, "photographs_panoptic", "panoptic_fpn", with_masks=True, maps=_MAPS)
    scale = Scale.of(seen, of)
    pixels = float(np.prod(seen.median_hw if scale.tile is None else scale.tile[:1] * 2)) * scale.factor**2
    values["config"] |= {
        "semantic": {"name": "semantic_fpn", "channels": max(64, of.channels // 2)},
        "fusion": {"stuff_area": max(16, round(pixels * 0.002))},
        "loss_weights": {"loss_semantic": 1.0, "loss_panoptic": 0.5},
    }
    frozen = [f"detector.{module}" for module in values["frozen"]]
    return values | {"rate_scales": {"detector.backbone.": 0.2}, "frozen": frozen}


def _detector(
    seen: Inspection, of: Size, name: str, architecture: str, *, with_masks: bool, maps: Sequence[str] | None = None
) -> Values:
    scale = Scale.of(seen, of)
    maps = maps or maps_of(seen, scale.factor)
    sizes, ratios = anchors_of(seen, scale.factor, len(maps))
    most = detections_of(seen)
    heads: dict[str, Any] = {
        "box": {"name": "box_head", "fc_channels": [of.hidden] * 2, "detections_per_image": most},
    }
    if with_masks:
        heads["mask"] = {"name": "mask_head", "channels": [of.channels] * 4, "predictor_channels": of.channels}
    return {
        "name": name,
        "architecture": architecture,
        "config": {
            "backbone": {**of.backbone, "out": list(maps)},
            "neck": {"name": "fpn", "channels": of.channels, "extra": None},
            "rpn": {
                "name": "rpn", "anchor_sizes": sizes, "aspect_ratios": ratios,
                "foreground_iou": 0.6, "pre_nms_train": 1000, "pre_nms_test": max(500, 3 * most),
                "post_nms_train": 500, "post_nms_test": max(300, 2 * most),
            },
            "heads": heads,
            "sampler": {"iou_threshold": 0.5, "per_image": of.regions, "positive_fraction": 0.25},
            "transform": scale.transform(),
        },
        **_training(seen, scale, zoom=(0.7, 1.5), epochs=_EPOCHS_OF_OBJECTS),
        "rate_scales": {"backbone.": 0.2},
        "frozen": [f"backbone.{module}" for module in of.early],
        "repeat_threshold": 0.1 if len(seen.things) > 1 else 0.0,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the usual image is to the network.

    Args:
        factor: pixels of the network for a pixel of the image.
        short, long: sides of the usual and of the largest image, pixels of the network.
        window_hw: what a step of training looks at, pixels of the network: multiples of 32, no more than images need.
        size: of the model.
        tile: side and overlap of the tiles that pictures are cut into, source pixels; the usual image is a tile then.
    """

    factor: float
    short: int
    long: int
    window_hw: tuple[int, int]
    size: Size
    tile: tuple[int, int] | None = None

    @classmethod
    def of(cls, seen: Inspection, size: Size, *, for_objects: bool = True) -> Scale:
        """What the labels call for."""
        tile = tile_of(seen, size.largest_side) if for_objects else None
        if tile is not None:
            side = size.largest_side
            return cls(side / tile[0], side, side, (size.window, size.window), size, tile)
        factor = factor_of(seen, size.largest_side, for_objects=for_objects)
        short = max(32, round(min(seen.median_hw) * factor))
        long = max(size.window, round(min(float(seen.sizes_hw.max()) * factor, 2 * size.largest_side)), short)
        rows, columns = (min(size.window, max(64, math.ceil(side * factor / 32) * 32)) for side in seen.median_hw)
        return cls(factor, short, long, (rows, columns), size)

    def transform(self) -> Values:
        """Options of ``ImageTransform``: images get the shorter side of the usual one, windows stay as they are."""
        return {
            "min_size": self.short,
            "max_size": self.long,
            "train_min_sizes": [min(self.window_hw)],
            "mean": list(self.size.mean),
            "std": list(self.size.std),
            **({} if self.tile is None else {"tile": list(self.tile)}),
        }


def factor_of(seen: Inspection, largest_side: int = SIZES["small"].largest_side, *, for_objects: bool = True) -> float:
    """Pixels of the network for a pixel of the usual image.

    Large images are reduced. Where objects would be smaller than can be seen, images are enlarged, as far as that fits.
    """
    limit = largest_side / max(seen.median_hw)
    if not for_objects or not len(seen.areas):
        return min(1.0, limit)
    small = float(np.quantile(np.sqrt(np.maximum(seen.areas, 1.0)), 0.1))
    return min(limit, max(1.0, min(_SEEN_PX / small, _LARGEST_FACTOR)))


def tile_of(seen: Inspection, largest_side: int) -> tuple[int, int] | None:
    """Side and overlap, source pixels, of tiles for pictures whose small objects could not be seen if all were reduced.

    Tiles are as large as may be if the smaller tenth of the objects is to be seen. They overlap as the larger ones are
    long, between an eighth and a quarter. None: the pictures can be looked at as they are.
    """
    if not len(seen.areas):
        return None
    sides = np.sqrt(np.maximum(seen.areas, 1.0))
    small, large = (float(np.quantile(sides, share)) for share in (0.1, 0.9))
    if largest_side / max(seen.median_hw) * small >= _SEEN_PX / 2:
        return None
    side = round(largest_side / min(1.0, _SEEN_PX / small))
    return (side, min(side // 4, max(side // 8, round(large)))) if side < max(seen.median_hw) else None


def _training(
    seen: Inspection,
    scale: Scale,
    *,
    zoom: tuple[float, float],
    epochs: int,
    rate: float = 1e-3,
    noise: Sequence[Values] = (),
) -> Values:
    rows, columns = scale.window_hw
    cut = {"name": "random_crop", "height": rows, "width": columns, "low": zoom[0], "high": zoom[1],
           "short_side": scale.short}  # fmt: skip
    colour = {"name": "colour_jitter", "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}
    mirror = [{"name": "horizontal_flip"}] if may_be_mirrored(seen.classes) else []
    return {
        "initial": IMAGENET,
        "batch_size": BATCH,
        "loop": {
            "steps": steps_of(seen, epochs), "learning_rate": rate, "warmup_steps": 50, "weight_decay": 0.02,
        },
        "labelled": {"augmentation": [*mirror, cut, colour, *noise]},
        "unlabelled": {"augmentation": [*mirror, cut, colour, *_STRONG]},
    }  # fmt: skip


def steps_of(seen: Inspection, epochs: int) -> int:
    """Steps in which every image is looked at so often; of few images oftener, of very many less often."""
    fewest, most = _STEPS
    return int(min(most, max(fewest, round(len(seen.sizes_hw) * epochs / BATCH, -1))))


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


def maps_of(seen: Inspection, factor: float) -> tuple[str, ...]:
    """The backbone's maps that objects call for: with small ones the coarsest, most of its parameters, is left out."""
    boxes = thing_boxes(seen) * factor
    largest = float(np.quantile(np.sqrt(boxes.prod(1)), 0.98)) if len(boxes) else math.inf
    return _MAPS[:-1] if largest <= 16 * _STRIDES_OF_OBJECT else _MAPS


def anchors_of(seen: Inspection, factor: float, maps: int = len(_MAPS)) -> tuple[list[list[int]], list[float]]:
    """Two sides for each map, and ratios of height to width that all share, from the objects' boxes.

    Sides are spread evenly, on a logarithmic scale, over the middle 96 % of the objects; ratios are three quantiles.
    With one side for each map 85 % of the nuclei of the Data Science Bowl fit at an IoU of .6, with two 95 %.
    """
    boxes = thing_boxes(seen) * factor
    if not len(boxes):
        return [[side, round(side * math.sqrt(2))] for side in (16, 32, 64, 128)[:maps]], [0.5, 1.0, 2.0]
    sides = np.sqrt(boxes.prod(1))
    low, high = np.quantile(sides, 0.02), np.quantile(sides, 0.98)
    low, high = max(8.0, low), max(low * 2, high, 16.0)
    spread = np.exp(np.linspace(math.log(low), math.log(high), 4 * maps + 1))[1::2]
    ratios = np.quantile(boxes[:, 1] / boxes[:, 0], [0.1, 0.5, 0.9])
    rounded = [max(4, round(side)) for side in spread]
    pairs = [rounded[at : at + 2] for at in range(0, len(rounded), 2)]
    return pairs, sorted({round(float(ratio), 2) for ratio in ratios})


def detections_of(seen: Inspection) -> int:
    """How many objects an image may have: COCO's 100, or a third more than the fullest labelled image."""
    return max(_PER_IMAGE, math.ceil(float(seen.per_image.max(initial=0)) * 4 / 3))
