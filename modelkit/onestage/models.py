"""Registered one-stage models: YOLACT (Bolya et al. 2019), YolactEdge (Liu et al. 2020), and their published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelkit.onestage.detector import AnchorDetector
from modelkit.onestage.edge import VideoAnchorDetector
from modelkit.registry import Config, register_model, register_variant
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "head": "dense_head"}
_MAPS = ["c3", "c4", "c5"]
_RESNET101 = {"name": "resnet", "depth": 101, "out": _MAPS}
_NECK = {"name": "yolact_fpn"}
_HEAD = {"name": "yolact_head"}
_FEATURE_TRANSFORM = {"name": "partial_feature_transform"}
_MEAN, _STD = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)  # RGB of 0 .. 255, the authors' own
_NO_WEIGHTS: dict[str, float] = {}


def squash(side: int, **changes: Any) -> dict[str, Any]:
    """Options of the transform that YOLACT was trained with: a square, whatever the aspect ratio."""
    options: dict[str, Any] = {
        "min_size": side,
        "max_size": side,
        "mean": [value / 255 for value in _MEAN],
        "std": [value / 255 for value in _STD],
        "size_divisible": 1,
        "padding": "square",
    }
    return ImageTransform(**{**options, **changes}).to_config()


_TRANSFORM = squash(550)


@register_model("yolact", architecture="AnchorDetector", kind="instance", parts=_PARTS)
def yolact(
    *,
    num_classes: int = 81,
    backbone: Config = _RESNET101,
    neck: Config = _NECK,
    head: Config = _HEAD,
    transform: Config = _TRANSFORM,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> AnchorDetector:
    """YOLACT; defaults are ResNet-101, 550 pixels and 81 classes (``yolact_base`` of its authors)."""
    return AnchorDetector(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        head=head,
        transform=transform,
        loss_weights=loss_weights,
    )


def _scales(side: int) -> list[list[int]]:
    return [[int(scale / 550 * side)] for scale in (24, 48, 96, 192, 384)]


register_variant("yolact_resnet50", "yolact", backbone={"depth": 50})
register_variant(
    "yolact_darknet53",
    "yolact",
    backbone={"name": "darknet53", "out": _MAPS},
    transform={"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
)
register_variant(
    "yolact_resnet50_pascal",
    "yolact",
    num_classes=21,
    backbone={"depth": 50},
    head={"anchor_scales": [[32], [64], [128], [256], [512]], "square_anchors": False},
)
register_variant("yolact_im400", "yolact", head={"anchor_scales": _scales(400)}, transform=squash(400))
register_variant(
    "yolact_im700",
    "yolact",
    head={"anchor_scales": _scales(700), "masks_to_train": 300},
    transform=squash(700),
)


@register_model(
    "yolact_edge",
    architecture="VideoAnchorDetector",
    kind="instance",
    parts={**_PARTS, "feature_transform": "neck"},
)
def yolact_edge(
    *,
    num_classes: int = 41,
    backbone: Config = _RESNET101,
    neck: Config = _NECK,
    head: Config = _HEAD,
    feature_transform: Config = _FEATURE_TRANSFORM,
    transform: Config = _TRANSFORM,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
    key_every: int = 5,
    freeze_backbone: bool = False,
) -> VideoAnchorDetector:
    """YolactEdge; defaults are ResNet-101, 550 pixels and the 40 classes of YouTube-VIS."""
    return VideoAnchorDetector(
        num_classes=num_classes,
        backbone=backbone,
        neck=neck,
        head=head,
        feature_transform=feature_transform,
        transform=transform,
        loss_weights=loss_weights,
        key_every=key_every,
        freeze_backbone=freeze_backbone,
    )


register_variant("yolact_edge_resnet50", "yolact_edge", backbone={"depth": 50})
