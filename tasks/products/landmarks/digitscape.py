"""Recipes for the points of digits that ``visionmill digitscape`` writes: small top-down models.

Digits are not changed by noise but for how their crops lie around them: there are as many as are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit import ClassInfo

Values = Mapping[str, Any]
"""Of ``TrainingRecipe``, by field."""

_SHIPPED = "digitscape_mask_rcnn"
_BACKBONE = {"name": "slim_resnet", "widths": [32, 64, 128, 192], "depths": [2, 2, 2, 2], "out": ["c5"]}
_TRANSFORM = {"padding": "letterbox", "fixed_hw": [96, 64]}
_CODEC = {"sigma": 1.5, "decoder": "dark", "blur": 5}
_NOISE = {"augmentation": [{"name": "object_jitter", "rotate_deg": 0.0, "scale": 0.15, "shift": 0.05}]}


def heatmap(classes: Sequence[ClassInfo]) -> Values:
    """Heatmaps on the shipped detector's backbone."""
    neck = {"name": "deconvolution", "channels": [64, 64, 64]}
    return _top_down("heatmap_landmarker", {"backbone": _BACKBONE, "neck": neck, "codec": _CODEC})


def coordinate(classes: Sequence[ClassInfo]) -> Values:
    """Coordinates by one layer on the same backbone, with the same budget: the baseline."""
    return _top_down("coordinate_landmarker", {"backbone": _BACKBONE})


def hourglass(classes: Sequence[ClassInfo]) -> Values:
    """Two small hourglasses, from nothing."""
    values = _top_down("hourglass", {"stacks": 2, "width": 64, "depth": 3, "codec": _CODEC})
    return {**values, "initial": None}


def _top_down(architecture: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "config": {**parts, "transform": _TRANSFORM},
        "labelled": _NOISE,
        "initial": _SHIPPED,
        "initial_parts": ("network.backbone.",),
        "batch_size": 32,
        "loop": {
            "steps": 600, "learning_rate": 2e-3, "warmup_steps": 50, "decay_from": 200, "ema_decay": 0.99,
            "checkpoint_every": 50,
        },
    }  # fmt: skip
