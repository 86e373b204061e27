"""How boxes, points and maps move: by a change of size or by a 3 x 3 affine matrix.

Pixels are counted as ``modelkit.carriers`` says.

torchvision's geometric kernels round differently for images, masks and boxes and keep no matrix, so the warp is
written here around ``grid_sample``, for which pixel i lies between i and i + 1, as it does for our boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW


def scale_boxes(boxes_xyxy: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Boxes (n, 4) of an image of one size to the same image at another size."""
    return boxes_xyxy * _ratios(from_hw, to_hw).repeat(2).to(boxes_xyxy)


def scale_points(points_xy: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Points (..., 2) of an image of one size to the same image at another size."""
    return points_xy * _ratios(from_hw, to_hw).to(points_xy)


def _ratios(from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """(2,) float32: of columns, then of rows."""
    rows, columns = (
        torch.tensor(to, dtype=torch.float32) / torch.tensor(origin, dtype=torch.float32)
        for to, origin in zip(to_hw, from_hw, strict=True)
    )
    return torch.stack([columns, rows])


def resize_nearest(maps: Tensor, size_hw: SizeHW, *, aligned: bool = True) -> Tensor:
    """Maps (n, H, W) of any dtype to (n, *size_hw): each new pixel takes the value at its centre.

    Args:
        maps: n may be 0.
        size_hw: rows and columns of the result.
        aligned: False takes the value at the new pixel's upper left corner, which is torchvision's rule for masks: one
            that is reduced to a fourth then lies three eighths of a new pixel too far down and right.
    """
    if maps.shape[-2:] == size_hw:
        return maps
    mode = "nearest-exact" if aligned else "nearest"
    return F.interpolate(maps[:, None].float(), size=size_hw, mode=mode)[:, 0].to(maps.dtype)


def mirror_boxes(boxes_xyxy: Tensor, width: int) -> Tensor:
    """Boxes (n, 4) of an image of so many columns, left and right exchanged."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def clip_boxes(boxes_xyxy: Tensor, size_hw: SizeHW) -> Tensor:
    """Boxes (n, 4), each cut off at the borders of an image."""
    rows, columns = size_hw
    limits = boxes_xyxy.new_tensor([columns, rows, columns, rows])
    return torch.minimum(boxes_xyxy.clamp(min=0), limits)


def box_areas(boxes_xyxy: Tensor) -> Tensor:
    """(n,): square pixels; 0 where a side is not positive."""
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(1)


def have_area(boxes_xyxy: Tensor) -> Tensor:
    """(n,) bool: both sides are longer than 0."""
    return (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)


def tight_boxes(masks: Tensor) -> Tensor:
    """(n, H, W) to the boxes (n, 4) float32 around their pixels, exclusive at the right and bottom; zeros if empty."""
    if len(masks) == 0:
        return torch.zeros((0, 4))
    columns, rows = masks.bool().any(1), masks.bool().any(2)
    sides = []
    for used in (columns, rows):
        first = used.int().argmax(1)
        last = used.shape[1] - used.flip(1).int().argmax(1)
        present = used.any(1)
        sides.append((first * present, last * present))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], 1).float()


def warp_points(points_xy: Tensor, matrix: Tensor) -> Tensor:
    """Points (..., 2) float64 by a matrix (3, 3) float64; not clipped."""
    return points_xy @ matrix[:2, :2].T + matrix[:2, 2]


def warp_boxes(boxes_xyxy: Tensor, matrix: Tensor) -> Tensor:
    """(n, 4) to the boxes that enclose the moved corners; not clipped."""
    x1, y1, x2, y2 = boxes_xyxy.double().unbind(1)
    corners = torch.stack([torch.stack(c, 1) for c in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], 1)
    moved = warp_points(corners, matrix)
    return torch.cat([moved.amin(1), moved.amax(1)], 1).to(boxes_xyxy.dtype)


def warp_maps(maps: Tensor, matrix: Tensor, size_hw: SizeHW, *, fill: float, nearest: bool) -> Tensor:
    """(C, H, W) of any dtype to (C, *size_hw): each new pixel takes the value at its centre's origin, or ``fill``."""
    if len(maps) == 0:
        return maps.new_zeros((0, *size_hw))
    if _is_mirror(matrix, maps.shape[-2:], size_hw):
        return maps.flip(-1)
    rows, columns = maps.shape[-2:]
    x, y = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (size_hw[1], size_hw[0]))
    (xx, xy, x0), (yx, yy, y0) = torch.linalg.inv(matrix)[:2].tolist()
    origin_x, origin_y = (x * xx + x0) + (y * xy)[:, None], (x * yx + y0) + (y * yy)[:, None]
    grid = torch.stack([origin_x * (2 / columns) - 1, origin_y * (2 / rows) - 1], -1)
    shifted = maps.to(torch.float64 if maps.dtype == torch.int64 else torch.float32) - fill
    mode = "nearest" if nearest else "bilinear"
    moved = F.grid_sample(shifted[None], grid[None].to(shifted), mode=mode, align_corners=False)[0] + fill
    return (moved.round() if not maps.is_floating_point() else moved).to(maps.dtype)


def _is_mirror(matrix: Tensor, from_hw: Sequence[int], to_hw: SizeHW) -> bool:
    """Whether left becomes right and nothing else happens, which costs no resampling."""
    turned = [[-1.0, 0.0, float(from_hw[1])], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return tuple(from_hw) == tuple(to_hw) and matrix.tolist() == turned
