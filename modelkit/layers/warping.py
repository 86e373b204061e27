"""Moving maps along an optical flow."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(maps: Tensor, flow: Tensor, padding: Literal["zeros", "border"] = "zeros") -> Tensor:
    """What lies at ``p + flow(p)``, bilinear: maps of another frame as they look from here.

    Positions need more digits than half precision has, so the work is done in float32.

    Args:
        maps: (N, C, H, W) float.
        flow: (N, 2, H, W) displacement (x to the right, y down) in cells, from here to the other frame.
        padding: beyond the border "zeros" (features), or the nearest cell of the "border" (images).

    Returns:
        (N, C, H, W).
    """
    height, width = maps.shape[-2:]
    flow = flow.float()
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    # Centres at (2 x + 1) / width - 1: the same cells as by corner alignment, which fails on a single column.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    moved = F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return moved.to(maps.dtype)
