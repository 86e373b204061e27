"""Registered top-down landmark models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from modelkit.errors import ConfigError
from modelkit.landmarks.heatmaps import HeatmapCodec
from modelkit.landmarks.hourglass import StackedHourglass
from modelkit.landmarks.landmarker import CoordinateLandmarker, HeatmapLandmarker
from modelkit.landmarks.losses import CoordinateLoss
from modelkit.landmarks.networks import LandmarkNetwork
from modelkit.registry import Config, register_model
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "neck": "neck", "head": "dense_head"}
_RESNET50 = {"name": "resnet", "depth": 50, "out": ["c5"]}
_RESNET18 = {"name": "resnet", "depth": 18, "out": ["c5"]}
_DECONVOLUTION = {"name": "deconvolution"}
_HEATMAPS = {"name": "heatmap_head"}
_CODEC = HeatmapCodec().to_config()
_HOURGLASS_CODEC = HeatmapCodec(sigma=1.0).to_config()
_TRANSFORM = ImageTransform(padding="letterbox", fixed_hw=(256, 192)).to_config()
_SQUARE = ImageTransform(padding="letterbox", fixed_hw=(256, 256)).to_config()
_NO_WEIGHTS: dict[str, float] = {}


@register_model("heatmap_landmarker", architecture="HeatmapLandmarker", kind="keypoints", parts=_PARTS)
def heatmap_landmarker(
    *,
    num_keypoints: int = 17,
    backbone: Config = _RESNET50,
    neck: Config = _DECONVOLUTION,
    head: Config = _HEATMAPS,
    codec: Config = _CODEC,
    transform: Config = _TRANSFORM,
    margin: float = 1.25,
    flip_pairs: Sequence[Sequence[int]] = (),
    flip_test: bool = False,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> HeatmapLandmarker:
    """Any backbone, deconvolutions and a map for each point (Xiao et al. 2018, "simple baselines"), stride 4."""
    model = HeatmapLandmarker(
        LandmarkNetwork(backbone, neck, head, num_keypoints),
        num_keypoints=num_keypoints,
        codec=codec,
        transform=transform,
        margin=margin,
        flip_pairs=flip_pairs,
        flip_test=flip_test,
    )
    model.loss_weights.update(loss_weights)
    return model


@register_model("coordinate_landmarker", architecture="CoordinateLandmarker", kind="keypoints", parts=_PARTS)
def coordinate_landmarker(
    *,
    num_keypoints: int = 17,
    mode: Literal["linear", "soft_argmax"] = "linear",
    backbone: Config = _RESNET18,
    neck: Config = _DECONVOLUTION,
    loss: CoordinateLoss = "smooth_l1",
    beta: float = 20.0,
    transform: Config = _TRANSFORM,
    margin: float = 1.25,
    flip_pairs: Sequence[Sequence[int]] = (),
    flip_test: bool = False,
) -> CoordinateLandmarker:
    """Coordinates at once: "linear", one layer on the mean of the last map (the baseline); or "soft_argmax", the
    expectation over the map that the neck ends in, ``beta`` times its values as logits. The neck is for that alone.
    """
    if mode not in ("linear", "soft_argmax"):
        raise ConfigError(f"mode must be 'linear' or 'soft_argmax', got {mode!r}")
    linear = mode == "linear"
    head = {"name": "coordinate_head"} if linear else _HEATMAPS
    return CoordinateLandmarker(
        LandmarkNetwork(backbone, {"name": "none"} if linear else neck, head, num_keypoints),
        num_keypoints=num_keypoints,
        loss=loss,
        beta=None if linear else beta,
        transform=transform,
        margin=margin,
        flip_pairs=flip_pairs,
        flip_test=flip_test,
    )


@register_model("hourglass", architecture="HeatmapLandmarker", kind="keypoints")
def hourglass(
    *,
    num_keypoints: int = 16,
    stacks: int = 2,
    width: int = 256,
    depth: int = 4,
    codec: Config = _HOURGLASS_CODEC,
    transform: Config = _SQUARE,
    margin: float = 1.25,
    flip_pairs: Sequence[Sequence[int]] = (),
    flip_test: bool = False,
    loss_weights: Mapping[str, float] = _NO_WEIGHTS,
) -> HeatmapLandmarker:
    """Stacked Hourglass (Newell et al. 2016), 1 to 8 stacks; every stack learns by a loss of its own."""
    network = StackedHourglass(num_keypoints, stacks, width, depth)
    model = HeatmapLandmarker(
        network,
        num_keypoints=num_keypoints,
        stages=stacks,
        codec=codec,
        transform=transform,
        margin=margin,
        flip_pairs=flip_pairs,
        flip_test=flip_test,
    )
    if any(side % network.divisor for side in model.network_hw):
        raise ConfigError(f"hourglass needs a fixed_hw divisible by {network.divisor}, got {model.network_hw}")
    model.loss_weights.update(loss_weights)
    return model
