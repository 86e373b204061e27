"""Affine geometry: one matrix moves image and target alike, and can be replayed and undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modelkit.augmentation.sample import Sample
from modelkit.carriers import SizeHW
from modelkit.carriers.fields import GREY, Warp
from modelkit.carriers.geometry import box_areas, clip_boxes, tight_boxes, warp_boxes, warp_maps
from modelkit.carriers.targets import FLIP_PAIRS, drop_hidden, warp_target

MIN_VISIBLE = 0.2


def translation(x: float, y: float) -> Tensor:
    """(3, 3) float64: pixels to the right and down."""
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def scaling(x: float, y: float) -> Tensor:
    """(3, 3) float64: about the image's corner."""
    return torch.tensor([[x, 0, 0], [0, y, 0], [0, 0, 1]], dtype=torch.float64)


def rotation(degrees: float) -> Tensor:
    """(3, 3) float64: clockwise as seen (y points down), about the corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def shear(x: float, y: float) -> Tensor:
    """(3, 3) float64: x grows by ``x`` * y and y by ``y`` * x, about the corner."""
    return torch.tensor([[1, x, 0], [y, 1, 0], [0, 0, 1]], dtype=torch.float64)


def horizontal_flip(size_hw: SizeHW) -> Tensor:
    """(3, 3) float64: left becomes right; its own inverse."""
    return torch.tensor([[-1, 0, size_hw[1]], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)


def about_centre(matrix: Tensor, size_hw: SizeHW) -> Tensor:
    """The same about the centre of an image."""
    x, y = size_hw[1] / 2, size_hw[0] / 2
    return translation(x, y) @ matrix @ translation(-x, -y)


def warp(sample: Sample, matrix: Tensor, size_hw: SizeHW | None = None, *, min_visible: float = MIN_VISIBLE) -> Sample:
    """Move a sample by a matrix.

    Boxes are tightened around the moved masks where there are any, else they enclose the moved corners. Objects of
    which less than ``min_visible`` stays inside become ignored regions. What comes in from outside is grey and ignored.

    Args:
        sample: what to move. With keypoints, a matrix that mirrors needs ``flip_pairs`` in the target.
        matrix: (3, 3) float64 affine, from pixels of the sample to pixels of the result.
        size_hw: of the result; default: as before.
        min_visible: see above; 0 keeps whatever shows.

    Raises:
        TargetError: for entries of the target that nobody knows how to move, and for mirrored keypoints without pairs.
    """
    motion = Warp(matrix, size_hw or sample.size_hw, sample.target.get(FLIP_PAIRS))
    target = warp_target(sample.target, motion)
    if "boxes" in target:
        visible = _visible(sample.target, target, motion)
        if "masks" in target:
            target["boxes"] = tight_boxes(target["masks"])
        target = drop_hidden(target, visible, min_visible)
    image = warp_maps(sample.image, matrix, motion.to_hw, fill=GREY, nearest=False).clamp(0, 1)
    return replace(sample, image=image, target=target, matrix=matrix @ sample.matrix)


def _visible(before: Mapping[str, Any], after: Mapping[str, Any], motion: Warp) -> Tensor:
    """(n,) float: the share of each object's mask, or box, that stays on the canvas."""
    if "masks" in before:
        whole = before["masks"].flatten(1).sum(1).double() * abs(float(torch.linalg.det(motion.matrix)))
        return after["masks"].flatten(1).sum(1) / whole.clamp(min=1)
    moved = warp_boxes(before["boxes"], motion.matrix)
    return box_areas(clip_boxes(moved, motion.to_hw)) / box_areas(moved).clamp(min=1e-9)


def replay(image: Tensor, sample: Sample) -> Tensor:
    """Another image of the same source, (C, H, W) float, moved as the sample's was: all its steps in one resampling."""
    return warp_maps(image, sample.matrix, sample.size_hw, fill=GREY, nearest=False)


def undo(sample: Sample) -> Sample:
    """Back to the pixels of the source; what had left the image stays lost."""
    return warp(sample, torch.linalg.inv(sample.matrix), sample.source_hw, min_visible=0.0)
