"""Augmentations that move boxes, masks, keypoints and maps along with the pixels.

Every draw comes from a generator that the caller gives, and every sample keeps the matrix from its source's pixels, so
that a change can be repeated, replayed on another picture of the same source, and undone.
"""

from modelkit.augmentation.geometry import replay, undo, warp
from modelkit.augmentation.mixing import copy_paste, cutmix, cutmix_region, paste
from modelkit.augmentation.operations import (
    Blur,
    ColourJitter,
    Cutout,
    Greyscale,
    HorizontalFlip,
    Operation,
    RandomCrop,
    ScaleJitter,
    StacGeometric,
)
from modelkit.augmentation.pipeline import NONE, STRONG, WEAK, Pipeline
from modelkit.augmentation.randaugment import RandAugment
from modelkit.augmentation.sample import Sample

__all__ = [
    "NONE",
    "STRONG",
    "WEAK",
    "Blur",
    "ColourJitter",
    "Cutout",
    "Greyscale",
    "HorizontalFlip",
    "Operation",
    "Pipeline",
    "RandAugment",
    "RandomCrop",
    "Sample",
    "ScaleJitter",
    "StacGeometric",
    "copy_paste",
    "cutmix",
    "cutmix_region",
    "paste",
    "replay",
    "undo",
    "warp",
]
