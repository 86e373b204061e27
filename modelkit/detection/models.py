"""Registered two-stage models: the architectures, and torchvision's names for some of their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelkit.detection.keypoints import KeypointRCNN
from modelkit.detection.surfaces import DensePoseRCNN
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.registry import Config, register_model, register_variant
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "rpn": "dense_head", "heads": "roi_head"}
_RESNET50 = {"name": "resnet", "depth": 50}
_FPN = {"name": "fpn"}
_RPN = {"name": "rpn"}
_BOX = {"box": {"name": "box_head"}}
_BOX_AND_MASK = {"box": {"name": "box_head"}, "mask": {"name": "mask_head"}}
_BOX_AND_KEYPOINTS = {"box": {"name": "box_head"}, "keypoint": {"name": "keypoint_head"}}
_BOX_AND_SURFACE = {"box": {"name": "box_head"}, "surface": {"name": "surface_head"}}
_SAMPLER = {"iou_threshold": 0.5, "per_image": 512, "positive_fraction": 0.25}
_TRANSFORM = ImageTransform().to_config()
_NO_WEIGHTS: dict[str, float] = {}


@register_model("mask_rcnn", architecture="TwoStageDetector", kind="instance", parts=_PARTS)
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


@register_model("faster_rcnn", architecture="TwoStageDetector", kind="detection", parts=_PARTS)
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


@register_model("keypoint_rcnn", architecture="KeypointRCNN", kind="keypoints", parts=_PARTS)
def keypoint_rcnn(
    *,
    num_classes: int = 2,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX_AND_KEYPOINTS,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> KeypointRCNN:
    """Keypoint R-CNN (He et al. 2017): boxes, each with the points of ``heads.keypoint.num_keypoints``."""
    return KeypointRCNN(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        rpn=rpn,
        heads=heads,
        transform=transform,
        sampler=sampler,
        loss_weights=loss_weights,
    )


@register_model("densepose_rcnn", architecture="DensePoseRCNN", kind="keypoints", parts=_PARTS)
def densepose_rcnn(
    *,
    num_classes: int = 2,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX_AND_SURFACE,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> DensePoseRCNN:
    """DensePose R-CNN (Gueler et al. 2018), with detectron2's decoder: boxes, each with parts and coordinates."""
    return DensePoseRCNN(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        rpn=rpn,
        heads=heads,
        transform=transform,
        sampler=sampler,
        loss_weights=loss_weights,
    )


# torchvision's models by their names: the same state dicts give the same detections and losses.
_MASK = {"aligned_targets": False}
_BOX_V2 = {"conv_channels": [256] * 4, "fc_channels": [1024], "norm": "batch"}
_V2 = {"neck": {"norm": "batch"}, "rpn": {"conv_depth": 2}}  # Li et al. 2021
_COCO = ("COCO_V1",)

register_variant("maskrcnn_resnet50_fpn", "mask_rcnn", weights=_COCO, heads={"mask": _MASK})
register_variant("fasterrcnn_resnet50_fpn", "faster_rcnn", weights=_COCO)
register_variant(
    "keypointrcnn_resnet50_fpn",
    "keypoint_rcnn",
    weights=("COCO_V1", "COCO_LEGACY"),
    transform={"train_min_sizes": [640, 672, 704, 736, 768, 800]},
)
register_variant(
    "maskrcnn_resnet50_fpn_v2",
    "mask_rcnn",
    weights=_COCO,
    **_V2,
    heads={"box": _BOX_V2, "mask": {**_MASK, "norm": "batch"}},
)
register_variant("fasterrcnn_resnet50_fpn_v2", "faster_rcnn", weights=_COCO, **_V2, heads={"box": _BOX_V2})
