"""Registered two-stage models: the architectures by their own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelkit.detection.two_stage import TwoStageDetector
from modelkit.registry import Config, register_model
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "rpn": "dense_head", "heads": "roi_head"}
_RESNET50 = {"name": "resnet", "depth": 50}
_FPN = {"name": "fpn"}
_RPN = {"name": "rpn"}
_BOX = {"box": {"name": "box_head"}}
_BOX_AND_MASK = {"box": {"name": "box_head"}, "mask": {"name": "mask_head"}}
_FPN_V2 = {**_FPN, "norm": "batch"}
_RPN_V2 = {**_RPN, "conv_depth": 2}
_BOX_V2: Config = {"name": "box_head", "conv_channels": [256] * 4, "fc_channels": [1024], "norm": "batch"}
_SAMPLER = {"iou_threshold": 0.5, "per_image": 512, "positive_fraction": 0.25}
_TRANSFORM = ImageTransform().to_config()
_NO_WEIGHTS: dict[str, float] = {}


@register_model("mask_rcnn", architecture="TwoStageDetector", task="instance", parts=_PARTS)
def mask_rcnn(
    *,
    num_classes: int = 91,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX_AND_MASK,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> TwoStageDetector:
    """Mask R-CNN (He et al. 2017) on our skeleton; defaults are ResNet-50 FPN and 91 classes."""
    return TwoStageDetector(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        rpn=rpn,
        heads=heads,
        transform=transform,
        sampler=sampler,
        loss_weights=loss_weights,
    )


@register_model("faster_rcnn", architecture="TwoStageDetector", task="detection", parts=_PARTS)
def faster_rcnn(
    *,
    num_classes: int = 91,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> TwoStageDetector:
    """Faster R-CNN (Ren et al. 2015) with a pyramid: boxes only."""
    return TwoStageDetector(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        rpn=rpn,
        heads=heads,
        transform=transform,
        sampler=sampler,
        loss_weights=loss_weights,
    )


@register_model("maskrcnn_resnet50_fpn", architecture="TwoStageDetector", task="instance", weights=("COCO_V1",))
def maskrcnn_resnet50_fpn(
    *, num_classes: int = 91, norm: str = "batch", norm_eps: float = 1e-5, transform: Config = _TRANSFORM
) -> TwoStageDetector:
    """torchvision's model of that name, on our skeleton: the same state dict gives the same detections."""
    return mask_rcnn(num_classes=num_classes, backbone=_resnet50(norm, norm_eps), transform=transform)


@register_model("fasterrcnn_resnet50_fpn", architecture="TwoStageDetector", task="detection", weights=("COCO_V1",))
def fasterrcnn_resnet50_fpn(
    *, num_classes: int = 91, norm: str = "batch", norm_eps: float = 1e-5, transform: Config = _TRANSFORM
) -> TwoStageDetector:
    """torchvision's model of that name, on our skeleton."""
    return faster_rcnn(num_classes=num_classes, backbone=_resnet50(norm, norm_eps), transform=transform)


@register_model("maskrcnn_resnet50_fpn_v2", architecture="TwoStageDetector", task="instance", weights=("COCO_V1",))
def maskrcnn_resnet50_fpn_v2(*, num_classes: int = 91, transform: Config = _TRANSFORM) -> TwoStageDetector:
    """torchvision's improved recipe (Li et al. 2021): deeper proposal and box heads, normalisation everywhere."""
    heads: Mapping[str, Config] = {"box": _BOX_V2, "mask": {"name": "mask_head", "norm": "batch"}}
    return mask_rcnn(num_classes=num_classes, neck=_FPN_V2, rpn=_RPN_V2, heads=heads, transform=transform)


@register_model("fasterrcnn_resnet50_fpn_v2", architecture="TwoStageDetector", task="detection", weights=("COCO_V1",))
def fasterrcnn_resnet50_fpn_v2(*, num_classes: int = 91, transform: Config = _TRANSFORM) -> TwoStageDetector:
    """torchvision's improved recipe, boxes only."""
    return faster_rcnn(num_classes=num_classes, neck=_FPN_V2, rpn=_RPN_V2, heads={"box": _BOX_V2}, transform=transform)


def _resnet50(norm: str, norm_eps: float) -> Config:
    return {**_RESNET50, "norm": norm, "norm_eps": norm_eps}
