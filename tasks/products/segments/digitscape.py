"""Recipes for label sets that ``visionmill digitscape`` writes: small models for scenes of about 160 pixels.

Each states the schedule that its figures in ``docs/models.md`` were reached with; other ``--steps`` stretch it. Scenes
are not changed by noise: there are as many as are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit import ClassInfo
from modelkit.training.auxiliary import AuxiliaryConfig
from tasks.training.recipe import PLAIN

Values = Mapping[str, Any]
"""Of ``TrainingRecipe``, by field."""

SHIPPED = "digitscape_mask_rcnn"
_BACKBONE = {"name": "slim_resnet", "widths": [32, 64, 128, 192], "depths": [2, 2, 2, 2]}
_CHANNELS = 64
_POOLING = {"sampling_ratio": 1, "canonical_level": 3, "canonical_scale": 56}
_TRANSFORM = {"min_size": 160, "max_size": 320}

DETECTOR: dict[str, Any] = {
    "backbone": _BACKBONE,
    "neck": {"name": "fpn", "channels": _CHANNELS, "extra": None},
    "rpn": {
        "name": "rpn",
        "anchor_sizes": [[28], [46], [70], [100]],
        "aspect_ratios": [1.2, 2.2],
        "foreground_iou": 0.6,
        "samples_per_image": 96,
        "pre_nms_train": 200,
        "pre_nms_test": 200,
        "post_nms_train": 100,
        "post_nms_test": 100,
    },
    "heads": {
        "box": {"name": "box_head", "fc_channels": [256, 256], **_POOLING},
        # every mask is pooled from the finest map: strokes are a few pixels wide
        "mask": {
            "name": "mask_head",
            "channels": [_CHANNELS] * 3,
            "predictor_channels": _CHANNELS,
            **_POOLING,
            "canonical_level": 2,
            "canonical_scale": 1024,
        },
    },
    "transform": _TRANSFORM,
    "sampler": {"iou_threshold": 0.5, "per_image": 32, "positive_fraction": 0.25},
}
"""Options of the shipped model: a Mask R-CNN of 3.2 M parameters."""

# Enlarging scenes of 160 pixels to 224 gave 0.603 mask AP on `val` scenes instead of 0.551 (192: 0.594).
_ENLARGED = {"transform": {"min_size": 224, "max_size": 448}}


def detector(classes: Sequence[ClassInfo]) -> Values:
    """The shipped model's architecture, trained as any other."""
    return {"architecture": "mask_rcnn", "config": DETECTOR}


def shipped(classes: Sequence[ClassInfo]) -> Values:
    """The shipped model: nearly half of its steps teach backbone and neck alone, by the class of every pixel."""
    return {
        "architecture": "mask_rcnn",
        "config": DETECTOR,
        "labelled": PLAIN,
        "auxiliary": AuxiliaryConfig(weight=0.3, alone=1500, background=0.4),
        "inference": _ENLARGED,
        "loop": {
            "steps": 3200, "learning_rate": 1.2e-3, "warmup_steps": 150, "restart_step": 1500, "decay_from": 2200,
            "ema_decay": 0.998,
        },
    }  # fmt: skip


def yolact(classes: Sequence[ClassInfo]) -> Values:
    """A YOLACT on the shipped backbone: four maps from stride 4 on, priors of a digit's sizes and proportions."""
    head = {
        "anchor_scales": [[28], [46], [70], [100]],
        "aspect_ratios": [0.8, 0.45],
        "square_anchors": False,
        "num_prototypes": 16,
    }
    transform = {"min_size": 160, "max_size": 160, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return {
        "architecture": "yolact",
        "config": {
            "backbone": _BACKBONE,
            "neck": {"channels": _CHANNELS, "num_downsample": 0},
            "head": head,
            "transform": transform,
        },
        "labelled": PLAIN,
        "initial": SHIPPED,
        "initial_parts": ("backbone.",),
        "loop": _loop(500, learning_rate=1.5e-3, warmup_steps=30, decay_from=125),
    }


def unet(classes: Sequence[ClassInfo]) -> Values:
    """A U-Net from scratch; strokes are a few pixels wide, so Dice helps to keep them."""
    config = {"backbone": {"widths": [16, 32, 64, 96, 128]}, "losses": {"dice": 1.0}, "transform": _TRANSFORM}
    return {"architecture": "unet", "config": config}


def deeplabv3plus(classes: Sequence[ClassInfo]) -> Values:
    """DeepLabV3+ on the shipped backbone."""
    head = {"channels": 64, "low_channels": 32, "decoder_convs": 2, "separable": True}
    return _semantic("deeplabv3plus", classes, {"backbone": {**_BACKBONE, "out": ["c2", "c4"]}, "head": head})


def fcn(classes: Sequence[ClassInfo]) -> Values:
    """FCN-8s on the shipped backbone."""
    return _semantic("fcn", classes, {"backbone": _BACKBONE, "head": {"channels": 128, "dropout": 0.1}})


def unet_decoder(classes: Sequence[ClassInfo]) -> Values:
    """A U-Net's decoder on the shipped backbone."""
    return _semantic("unet", classes, {"backbone": _BACKBONE, "head": {"name": "unet_decoder"}})


def _semantic(architecture: str, classes: Sequence[ClassInfo], parts: dict[str, Any]) -> Values:
    """Digits against all else, which covers nine tenths of the pixels; or, where stuff is labelled, no background."""
    has_background = all(each.is_thing for each in classes)
    return {
        "architecture": architecture,
        "config": {
            **parts,
            "losses": {"dice": 1.0, "background": 0.4},
            "transform": _TRANSFORM,
            "background": 0 if has_background else None,
        },
        "labelled": PLAIN,
        "initial": SHIPPED,
        "initial_parts": ("network.backbone.",),
        "loop": _loop(400, learning_rate=2e-3, warmup_steps=50, decay_from=133),
    }


_PANOPTIC: dict[str, dict[str, Any]] = {
    "panoptic_fpn": {"semantic": {"name": "semantic_fpn", "channels": 64}},
    "upsnet": {
        "semantic": {"name": "deformable_semantic", "channels": [64, 64]},
        "fusion": {"roi_semantic": False},
    },
    "vpsnet": {
        # without the group norm of the large form: its 32 groups would be two channels wide, and learn late
        "semantic": {"name": "deformable_semantic", "channels": [64, 64], "norm": None},
        "heads": {"track": {"name": "track_head", "channels": 128, **_POOLING}},
        "temporal": {"name": "temporal_fusion", "refine_channels": [32, 32], "start_alone": True},
        "flow": {"name": "zero"},  # objects move two pixels a frame; the refinement of the flow reaches sixteen
    },
}
# Parts that the shipped detector lacks learn faster. Convolutions that give offsets to deformable ones do not: Adam
# moves weights equally far whatever their gradient, and hundreds that move as one push samples off by pixels.
_FRESH_RATES = {"semantic.": 4.0, "temporal.": 4.0, "detector.roi_heads.track.": 4.0}
_OFFSET_RATES = {f"semantic.subnet.{k}.0.offset.": 0.1 for k in range(2)}


def panoptic_config(architecture: str) -> dict[str, Any]:
    """Options of a small panoptic model: the shipped detector's parts, and a semantic head of about its width."""
    own = _PANOPTIC[architecture]
    return {
        **DETECTOR,
        **own,
        "heads": {**DETECTOR["heads"], **own.get("heads", {})},
        "fusion": {"stuff_area": 128, **own.get("fusion", {})},
        "loss_weights": {"loss_semantic": 1.0, "loss_panoptic": 0.5},
    }


def panoptic(classes: Sequence[ClassInfo]) -> Values:
    """Panoptic FPN from scratch."""
    return {"architecture": "panoptic_fpn", "config": panoptic_config("panoptic_fpn")}


def panoptic_fpn(classes: Sequence[ClassInfo]) -> Values:
    """Panoptic FPN around the shipped detector."""
    return _around_detector("panoptic_fpn")


def upsnet(classes: Sequence[ClassInfo]) -> Values:
    """UPSNet around the shipped detector."""
    return _around_detector("upsnet")


def vpsnet(classes: Sequence[ClassInfo]) -> Values:
    """VPSNet around the shipped detector; it learns from clips, ``visionmill digitscape --frames 2``."""
    return _around_detector("vpsnet")


def _around_detector(architecture: str) -> Values:
    return {
        "architecture": architecture,
        "config": panoptic_config(architecture),
        "labelled": PLAIN,
        "initial": SHIPPED,
        "rate_scales": _FRESH_RATES | _OFFSET_RATES,
        "inference": _ENLARGED,
        "loop": _loop(500, learning_rate=6e-4, warmup_steps=50, decay_from=250),
    }


def _loop(steps: int, **values: Any) -> dict[str, Any]:
    return {"steps": steps, "ema_decay": 0.99, "checkpoint_every": 50, **values}
