"""Recipes for the points of digits that ``visionmill digitscape`` writes: a small model of each family.

Digits are not changed by noise but for how their crops lie around them: there are as many as are asked for. Models that
find the digits themselves see whole scenes of about 160 pixels, enlarged to 224; where the shipped detector's anchors
are taken over, not before they are used. Those that find corners begin from nothing, see scenes as large as they are,
and give boxes without points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit import ClassInfo
from tasks.training.recipe import PLAIN

Values = Mapping[str, Any]
"""Of ``TrainingRecipe``, by field."""

_POOLING = {"sampling_ratio": 1, "canonical_level": 3, "canonical_scale": 56}
_SHIPPED = "digitscape_mask_rcnn"
_BACKBONE = {"name": "slim_resnet", "widths": [32, 64, 128, 192], "depths": [2, 2, 2, 2], "out": ["c5"]}
_TRANSFORM = {"padding": "letterbox", "fixed_hw": [96, 64]}
_CODEC = {"sigma": 1.5, "decoder": "dark", "blur": 5}
_MAPS = ["c3", "c4", "c5"]
_SCENES = {"min_size": 224, "max_size": 448}
_DETECTOR = {
    "backbone": {**_BACKBONE, "out": ["c2", *_MAPS]},
    "neck": {"name": "fpn", "channels": 64, "extra": None},
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
    "sampler": {"iou_threshold": 0.5, "per_image": 32, "positive_fraction": 0.25},
}  # as the shipped detector has it, whose weights it begins from
_CORNER_BACKBONE = {
    "stacks": 1, "widths": [64, 64, 96, 128], "depths": [1, 1, 1, 1], "stem_width": 32, "channels": 64, "norm": "group",
}  # fmt: skip
_CORNER_HEAD = {"stacks": 1, "pooled_channels": 32, "norm": "group"}
_PLAIN_SCENES = {"min_size": 160, "max_size": 320, "size_divisible": 32}  # three halvings after the stem's stride of 4
_NOISE = {"augmentation": [{"name": "object_jitter", "rotate_deg": 0.0, "scale": 0.15, "shift": 0.05}]}
"""In a loop, too: a mirrored digit is none, and the topmost point of one that is turned is another point."""


def heatmap(classes: Sequence[ClassInfo]) -> Values:
    """Heatmaps on the shipped detector's backbone; twice the pixels that the other recipes see make points finer."""
    return _heatmap([128, 96])


def heatmap_fine(classes: Sequence[ClassInfo]) -> Values:
    """Twice the pixels again, at twice the price: for weights that ``heatmap`` began (``train --from``)."""
    return _heatmap([192, 128])


def _heatmap(network_hw: list[int]) -> Values:
    neck = {"name": "deconvolution", "channels": [64, 64, 64]}
    values = _top_down("heatmap_landmarker", {"backbone": _BACKBONE, "neck": neck, "codec": _CODEC})
    return {**values, "config": {**values["config"], "transform": {**_TRANSFORM, "fixed_hw": network_hw}}}


def coordinate(classes: Sequence[ClassInfo]) -> Values:
    """Coordinates by one layer on the same backbone, with the same budget: the baseline."""
    return _top_down("coordinate_landmarker", {"backbone": _BACKBONE})


def hourglass(classes: Sequence[ClassInfo]) -> Values:
    """Two small hourglasses, from nothing."""
    values = _top_down("hourglass", {"stacks": 2, "width": 64, "depth": 3, "codec": _CODEC})
    return {**values, "initial": None}


def keypoint_rcnn(classes: Sequence[ClassInfo]) -> Values:
    """The shipped detector with a head of points in place of that of masks."""
    heads = {
        "box": {"name": "box_head", "fc_channels": [256, 256], **_POOLING},
        "keypoint": {"name": "keypoint_head", "channels": [64, 64, 64], **_POOLING},
    }
    taken = ("backbone.", "neck.", "rpn.", "roi_heads.box.")
    parts = {**_DETECTOR, "heads": heads, "transform": {"min_size": 160, "max_size": 320}}
    return {**_in_scenes("keypoint_rcnn", parts, taken), "inference": {"transform": _SCENES}}


def densepose_rcnn(classes: Sequence[ClassInfo]) -> Values:
    """The same with a head of surfaces: which part (digit) each pixel shows, and where on it."""
    heads = {
        "box": {"name": "box_head", "fc_channels": [256, 256], **_POOLING},
        "surface": {
            "name": "surface_head",
            "num_parts": len(classes),
            "decoder": {"name": "semantic_fpn", "channels": 64, "norm": None},
            "channels": [64] * 4,
            "resolution": 14,
            "sampling_ratio": 1,
        },
    }
    taken = ("backbone.", "neck.", "rpn.", "roi_heads.box.")
    parts = {**_DETECTOR, "heads": heads, "transform": {"min_size": 160, "max_size": 320}}
    return {**_in_scenes("densepose_rcnn", parts, taken), "inference": {"transform": _SCENES}}


def retinaface(classes: Sequence[ClassInfo]) -> Values:
    """Anchors of the digits' sides on three maps; boxes and points at once."""
    head = {"name": "face_head", "anchor_scales": [[24, 34], [48, 68], [96, 136]], "detections_per_image": 100}
    parts = {"backbone": {**_BACKBONE, "out": _MAPS}, "neck": {"name": "retinaface_fpn", "channels": 64}, "head": head}
    return _in_scenes("retinaface", parts, ("backbone.",))


def centernet(classes: Sequence[ClassInfo]) -> Values:
    """Digits as the peaks of a map of stride 4, which point to their points."""
    neck = {"name": "deconvolution", "channels": [64, 64, 64], "deformable": False}
    parts = {"backbone": _BACKBONE, "neck": neck, "head": {"name": "center_head", "channels": 64}}
    return _in_scenes("centernet", parts, ("backbone.",))


def cornernet(classes: Sequence[ClassInfo]) -> Values:
    """Digits between pairs of corners, found by one small hourglass from nothing; boxes without points."""
    return _corners("cornernet")


def centernet_triplet(classes: Sequence[ClassInfo]) -> Values:
    """The same with cascade pooling, and a centre that every pair needs."""
    return _corners("centernet_triplet")


def _corners(architecture: str) -> Values:
    return {
        "architecture": architecture,
        "config": {"num_keypoints": 0, "backbone": _CORNER_BACKBONE, "head": _CORNER_HEAD, "transform": _PLAIN_SCENES},
        "labelled": PLAIN,
        "batch_size": 8,
        "loop": {
            "steps": 3000, "learning_rate": 2e-3, "warmup_steps": 60, "decay_from": 1000, "ema_decay": 0.99,
            "checkpoint_every": 50,
        },
    }  # fmt: skip


def _in_scenes(architecture: str, parts: Mapping[str, Any], taken: tuple[str, ...]) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "config": {"transform": _SCENES, **parts},
        "labelled": PLAIN,
        "initial": _SHIPPED,
        "initial_parts": taken,
        "batch_size": 8,
        "loop": {
            "steps": 600, "learning_rate": 1e-3, "warmup_steps": 60, "decay_from": 200, "ema_decay": 0.99,
            "checkpoint_every": 50,
        },
    }  # fmt: skip


def _top_down(architecture: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "config": {**parts, "transform": _TRANSFORM},
        "labelled": _NOISE,
        "unlabelled": _NOISE,
        "initial": _SHIPPED,
        "initial_parts": ("network.backbone.",),
        "batch_size": 32,
        "loop": {
            "steps": 600, "learning_rate": 2e-3, "warmup_steps": 50, "decay_from": 200, "ema_decay": 0.99,
            "checkpoint_every": 50,
        },
    }  # fmt: skip
