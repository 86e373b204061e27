"""Registered models: CenterNet (Zhou et al. 2019), CornerNet (Law & Deng 2018), the triplet (Duan et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from modelkit.points.detector import PointDetector
from modelkit.registry import Config, register_model, register_variant
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "head": "dense_head"}
_NO_WEIGHTS: dict[str, float] = {}
POINT_MEAN, POINT_STD = [0.470, 0.447, 0.408], [0.278, 0.274, 0.289]  # RGB; theirs is BGR


def _transform(divisible: int) -> dict[str, Any]:
    return ImageTransform(
        min_size=512, max_size=512, mean=POINT_MEAN, std=POINT_STD, size_divisible=divisible
    ).to_config()


_TRANSFORM, _HOURGLASS_TRANSFORM = _transform(32), _transform(128)
_RESNET18 = {"name": "resnet", "depth": 18, "out": ["c5"]}
_DEFORMABLE = {"name": "deconvolution", "channels": [256, 128, 64], "deformable": True}
_CENTER_HEAD = {"name": "center_head"}
_HOURGLASS = {"name": "object_hourglass"}
_NO_NECK = {"name": "none"}
_CORNER_HEAD = {"name": "corner_head"}


@register_model("centernet", architecture="PointDetector", kind="keypoints", parts=_PARTS)
def centernet(
    *,
    num_classes: int = 81,
    num_keypoints: int = 0,
    backbone: Config = _RESNET18,
    neck: Config = _DEFORMABLE,
    head: Config = _CENTER_HEAD,
    transform: Config = _TRANSFORM,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> PointDetector:
    """Objects as points; defaults are ResNet-18 with deformable deconvolutions and the 80 classes of COCO."""
    return PointDetector(
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        backbone=backbone,
        neck=neck,
        head=head,
        transform=transform,
        loss_weights=loss_weights,
    )


_PLAIN = {"channels": [256, 256, 256], "deformable": False}
register_variant("centernet_resdcn101", "centernet", backbone={"depth": 101})
register_variant("centernet_resnet18", "centernet", neck=_PLAIN)
register_variant("centernet_resnet101", "centernet", backbone={"depth": 101}, neck=_PLAIN)
register_variant("centernet_pose", "centernet", num_classes=2, num_keypoints=17)


@register_model("cornernet", architecture="PointDetector", kind="keypoints", parts=_PARTS)
def cornernet(
    *,
    num_classes: int = 81,
    num_keypoints: Literal[0] = 0,
    backbone: Config = _HOURGLASS,
    neck: Config = _NO_NECK,
    head: Config = _CORNER_HEAD,
    transform: Config = _HOURGLASS_TRANSFORM,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> PointDetector:
    """Boxes from pairs of corners; defaults are two hourglasses and the 80 classes of COCO."""
    return PointDetector(
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        backbone=backbone,
        neck=neck,
        head=head,
        transform=transform,
        loss_weights=loss_weights,
    )


_TRIPLET: dict[str, Any] = {"centers": True, "iou": 0.7, "exact_radius": False, "peaks": 70}
register_variant("centernet_triplet", "cornernet", head=_TRIPLET)
register_variant("centernet_triplet52", "cornernet", backbone={"stacks": 1}, head={**_TRIPLET, "stacks": 1})
