"""Registered panoptic models; defaults are ResNet-50 FPN and the classes of COCO (80 things, 53 stuff)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelkit.panoptic.segmentor import PanopticSegmentor
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


@register_model("panoptic_fpn", architecture="PanopticSegmentor", task="panoptic", parts=_PARTS)
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
    detector = {
        "backbone": backbone,
        "neck": neck,
        "rpn": rpn,
        "heads": heads,
        "transform": transform,
        "sampler": sampler,
    }
    return PanopticSegmentor(
        num_things=num_things,
        num_stuff=num_stuff,
        detector=detector,
        semantic=semantic,
        fusion=fusion,
        loss_weights=loss_weights,
    )


# Xiong et al. 2019 with the loss weights of its COCO config; Cityscapes takes 1 and 0.5.
register_variant(
    "upsnet",
    "panoptic_fpn",
    semantic={"name": "deformable_semantic"},
    fusion={"name": "panoptic_fusion"},
    loss_weights={"loss_semantic": 0.2, "loss_panoptic": 0.1},
)
