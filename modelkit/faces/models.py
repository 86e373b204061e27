"""Registered models: RetinaFace (Deng et al. 2019) in the two published sizes of biubug6/Pytorch_Retinaface."""

from __future__ import annotations

from collections.abc import Mapping

from modelkit.points.detector import PointDetector
from modelkit.registry import Config, register_model, register_variant
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "head": "dense_head"}
_MAPS = ["c3", "c4", "c5"]
_BACKBONE = {"name": "mobilenet_v1", "width": 0.25, "out": _MAPS}
_NECK = {"name": "retinaface_fpn"}
_HEAD = {"name": "face_head"}
_NO_WEIGHTS: dict[str, float] = {}
FACE_MEAN, FACE_STD = [123 / 255, 117 / 255, 104 / 255], [1 / 255] * 3  # RGB; theirs is BGR of 0 .. 255
_TRANSFORM = ImageTransform(min_size=640, max_size=1024, mean=FACE_MEAN, std=FACE_STD).to_config()


@register_model("retinaface", architecture="PointDetector", kind="keypoints", parts=_PARTS)
def retinaface(
    *,
    num_classes: int = 2,
    num_keypoints: int = 5,
    backbone: Config = _BACKBONE,
    neck: Config = _NECK,
    head: Config = _HEAD,
    transform: Config = _TRANSFORM,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> PointDetector:
    """RetinaFace; defaults are MobileNetV1 x 0.25, one class (faces) and five points."""
    return PointDetector(
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        backbone=backbone,
        neck=neck,
        head=head,
        transform=transform,
        loss_weights=loss_weights,
    )


register_variant(
    "retinaface_resnet50",
    "retinaface",
    backbone={"name": "resnet", "depth": 50, "out": _MAPS},
    neck={"channels": 256},
    transform={"min_size": 840, "max_size": 1344},
)
