"""Registered panoptic models; defaults are ResNet-50 FPN and the classes of COCO (80 things, 53 stuff)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit.panoptic.segmentor import PanopticSegmentor
from modelkit.panoptic.vpsnet import VPSNet
from modelkit.registry import Config, register_model, register_variant
from modelkit.transform import ImageTransform

_PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "rpn": "dense_head",
    "heads": "roi_head",
    "semantic": "dense_head",
    "fusion": "fusion_head",
}
_RESNET50 = {"name": "resnet", "depth": 50}
_FPN = {"name": "fpn"}
_RPN = {"name": "rpn"}
_BOX_AND_MASK = {"box": {"name": "box_head"}, "mask": {"name": "mask_head"}}
_SAMPLER = {"iou_threshold": 0.5, "per_image": 512, "positive_fraction": 0.25}
_TRANSFORM = ImageTransform().to_config()
_SEMANTIC_FPN = {"name": "semantic_fpn"}
_MERGE = {"name": "panoptic_merge"}
_SEMANTIC_HALF = {"loss_semantic": 0.5}


def _detector(
    backbone: Config,
    neck: Config,
    rpn: Config,
    heads: Mapping[str, Config],
    transform: Config,
    sampler: Mapping[str, Any],
) -> dict[str, Any]:
    """Options of the detector inside."""
    return {
        "backbone": backbone,
        "neck": neck,
        "rpn": rpn,
        "heads": heads,
        "transform": transform,
        "sampler": sampler,
    }


@register_model("panoptic_fpn", architecture="PanopticSegmentor", kind="panoptic", parts=_PARTS)
def panoptic_fpn(
    *,
    num_things: int = 80,
    num_stuff: int = 53,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX_AND_MASK,
    semantic: Config = _SEMANTIC_FPN,
    fusion: Config = _MERGE,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _SEMANTIC_HALF,
) -> PanopticSegmentor:
    """Panoptic FPN (Kirillov et al. 2019): a summed pyramid for stuff, objects pasted by score."""
    return PanopticSegmentor(
        num_things=num_things,
        num_stuff=num_stuff,
        detector=_detector(backbone, neck, rpn, heads, transform, sampler),
        semantic=semantic,
        fusion=fusion,
        loss_weights=loss_weights,
    )


# Xiong et al. 2019 with the loss weights of its COCO config; Cityscapes takes 1 and 0.5.
register_variant(
    "upsnet",
    "panoptic_fpn",
    semantic={"name": "deformable_semantic"},
    fusion={"name": "panoptic_fusion", "roi_semantic": True},
    loss_weights={"loss_semantic": 0.2, "loss_semantic_roi": 0.04, "loss_panoptic": 0.1},
)

_BOX_MASK_AND_TRACK = {**_BOX_AND_MASK, "track": {"name": "track_head"}}
_DEFORMABLE_GROUP = {"name": "deformable_semantic", "norm": "group"}
_FUSION_WITHOUT_UNKNOWN = {"name": "panoptic_fusion", "unknown": False, "stuff_area": 2048}
_NO_MOTION = {"name": "zero"}  # RAFT knows nothing until somebody gives it weights
_TEMPORAL = {"name": "temporal_fusion"}
_MATCH_WEIGHTS = (1.0, 2.0, 10.0)
_TRACKING = {"loss_panoptic": 0.5, "loss_track": 0.5}


@register_model(
    "vpsnet", architecture="VPSNet", kind="panoptic", parts={**_PARTS, "flow": "flow", "temporal": "temporal"}
)
def vpsnet(
    *,
    num_things: int = 8,
    num_stuff: int = 11,
    backbone: Config = _RESNET50,
    neck: Config = _FPN,
    rpn: Config = _RPN,
    heads: Mapping[str, Config] = _BOX_MASK_AND_TRACK,
    semantic: Config = _DEFORMABLE_GROUP,
    fusion: Config = _FUSION_WITHOUT_UNKNOWN,
    flow: Config = _NO_MOTION,
    temporal: Config = _TEMPORAL,
    match_weights: Sequence[float] = _MATCH_WEIGHTS,
    memory_frames: int | None = None,
    transform: Config = _TRANSFORM,
    sampler: Mapping[str, Any] = _SAMPLER,
    loss_weights: Mapping[str, float] = _TRACKING,
) -> VPSNet:
    """VPSNet, fuse and track (Kim et al. 2020), with the classes of Cityscapes: 8 things, 11 stuff."""
    return VPSNet(
        num_things=num_things,
        num_stuff=num_stuff,
        detector=_detector(backbone, neck, rpn, heads, transform, sampler),
        semantic=semantic,
        fusion=fusion,
        flow=flow,
        temporal=temporal,
        match_weights=match_weights,
        memory_frames=memory_frames,
        loss_weights=loss_weights,
    )
