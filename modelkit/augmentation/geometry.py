"""Affine geometry: one matrix moves image, masks, boxes, keypoints and maps alike, and can be replayed and undone.

torchvision's geometric kernels round differently for images, masks and boxes and keep no matrix, so the warp is written
here around ``grid_sample``, whose convention (corners at integers) is that of our boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.augmentation.sample import GREY, IGNORE, Sample, drop_hidden, tight_boxes
from modelkit.transform import SizeHW

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


def warp(
    sample: Sample,
    matrix: Tensor,
    size_hw: SizeHW | None = None,
    *,
    min_visible: float = MIN_VISIBLE,
    flip_pairs: Sequence[tuple[int, int]] = (),
) -> Sample:
    """Move a sample by a matrix.

    Boxes are tightened around the moved masks where there are any, else they enclose the moved corners. Objects of
    which less than ``min_visible`` stays inside become ignored regions. What comes in from outside is grey and ignored.

    Args:
        sample: what to move.
        matrix: (3, 3) float64 affine, from pixels of the sample to pixels of the result.
        size_hw: of the result; default: as before.
        min_visible: see above; 0 keeps whatever shows.
        flip_pairs: keypoints that change roles when the matrix mirrors (left and right eye).
    """
    size_hw = size_hw or sample.size_hw
    target = dict(sample.target)
    for key, fill in (("semantic", IGNORE), ("semantic_weights", 0)):
        if key in target:
            target[key] = warp_maps(target[key][None], matrix, size_hw, fill=fill, nearest=True)[0]
    if "ignore_boxes" in target:
        moved = _inside(warp_boxes(target["ignore_boxes"], matrix), size_hw)
        target["ignore_boxes"] = moved[(moved[:, 2:] > moved[:, :2]).all(1)]
    if "keypoints" in target:
        target["keypoints"] = warp_keypoints(target["keypoints"], matrix, size_hw, flip_pairs)
    if "boxes" in target:
        target = _warp_objects(target, matrix, size_hw, min_visible)
    image = warp_maps(sample.image, matrix, size_hw, fill=GREY, nearest=False).clamp(0, 1)
    return replace(sample, image=image, target=target, matrix=matrix @ sample.matrix)


def _warp_objects(target: dict[str, Any], matrix: Tensor, size_hw: SizeHW, min_visible: float) -> dict[str, Any]:
    whole = warp_boxes(target["boxes"], matrix)
    clipped = _inside(whole, size_hw)
    if "masks" in target:
        before = target["masks"].flatten(1).sum(1).double() * abs(float(torch.linalg.det(matrix)))
        target["masks"] = warp_maps(target["masks"], matrix, size_hw, fill=0, nearest=True)
        target["boxes"] = tight_boxes(target["masks"])
        visible = target["masks"].flatten(1).sum(1) / before.clamp(min=1)
    else:
        target["boxes"] = clipped
        visible = _areas(clipped) / _areas(whole).clamp(min=1e-9)
    return drop_hidden(target, visible, min_visible)


def replay(image: Tensor, sample: Sample) -> Tensor:
    """Another image of the same source, (C, H, W) float, moved as the sample's was: all its steps in one resampling."""
    return warp_maps(image, sample.matrix, sample.size_hw, fill=GREY, nearest=False)


def undo(sample: Sample) -> Sample:
    """Back to the pixels of the source; what had left the image stays lost."""
    return warp(sample, torch.linalg.inv(sample.matrix), sample.source_hw, min_visible=0.0)


def warp_maps(maps: Tensor, matrix: Tensor, size_hw: SizeHW, *, fill: float, nearest: bool) -> Tensor:
    """(C, H, W) of any dtype to (C, *size_hw): each new pixel takes the value at its centre's origin, or ``fill``."""
    if len(maps) == 0:
        return maps.new_zeros((0, *size_hw))
    rows, columns = maps.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) + 0.5 for side in size_hw), indexing="ij")
    origin = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(matrix).T
    grid = 2 * origin[..., :2] / torch.tensor([columns, rows], dtype=torch.float64) - 1
    shifted = maps.to(torch.float64 if maps.dtype == torch.int64 else torch.float32) - fill
    mode = "nearest" if nearest else "bilinear"
    moved = F.grid_sample(shifted[None], grid[None].to(shifted), mode=mode, align_corners=False)[0] + fill
    return (moved.round() if not maps.is_floating_point() else moved).to(maps.dtype)


def warp_boxes(boxes_xyxy: Tensor, matrix: Tensor) -> Tensor:
    """(n, 4) to the boxes that enclose the moved corners; not clipped."""
    x1, y1, x2, y2 = boxes_xyxy.double().unbind(1)
    corners = torch.stack([torch.stack(c, 1) for c in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], 1)
    moved = _move(corners, matrix)
    return torch.cat([moved.amin(1), moved.amax(1)], 1).to(boxes_xyxy.dtype)


def warp_keypoints(
    keypoints: Tensor, matrix: Tensor, size_hw: SizeHW, flip_pairs: Sequence[tuple[int, int]] = ()
) -> Tensor:
    """(n, K, 3) of x, y, v; points that leave the image get v = 0 (not labelled)."""
    moved = _move(keypoints[..., :2].double() + 0.5, matrix) - 0.5
    rows, columns = size_hw
    inside = ((moved >= -0.5) & (moved < torch.tensor([columns, rows]) - 0.5)).all(-1)
    visible = torch.where(inside, keypoints[..., 2].double(), 0.0)
    result = torch.cat([moved, visible[..., None]], -1).to(keypoints.dtype)
    if float(torch.linalg.det(matrix)) < 0:
        order = list(range(keypoints.shape[1]))
        for left, right in flip_pairs:
            order[left], order[right] = right, left
        result = result[:, order]
    return result


def _move(points: Tensor, matrix: Tensor) -> Tensor:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _inside(boxes: Tensor, size_hw: SizeHW) -> Tensor:
    rows, columns = size_hw
    limits = boxes.new_tensor([columns, rows, columns, rows])
    return torch.minimum(boxes.clamp(min=0), limits)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
