"""RoIAlign with one sample per cell, for training on CPU.

torchvision's backward pass on CPU recomputes every sample's corners for every channel: it took a fifth of a
training step of the small model. Here the corners are computed once; pooling is a sparse matrix times the map laid
out as (cells, channels), and its gradient the transposed matrix. Values and gradients equal torchvision's up to
rounding.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_align_gather(feature: Tensor, rois: Tensor, output_size: int, scale: float) -> Tensor:
    """``torchvision.ops.roi_align(feature, rois, output_size, scale, sampling_ratio=1, aligned=False)``.

    Args:
        feature: (N, C, H, W) float32.
        rois: (r, 5) float32: image index, then xyxy in pixels.
        output_size: rows and columns of the result.
        scale: cells per pixel.

    Returns:
        (r, C, output_size, output_size) float32.
    """
    images, channels, height, width = feature.shape
    size = (rois[:, 3:] - rois[:, 1:3]) * scale
    step = size.clamp(min=1) / output_size
    offset = torch.arange(output_size, device=rois.device) + 0.5
    centre = rois[:, 1:3, None] * scale + offset * step[:, :, None]
    columns, column_weights = _neighbours(centre[:, 0], width)
    rows, row_weights = _neighbours(centre[:, 1], height)
    cells = rois[:, 0].long()[:, None, None] * height + rows
    index = cells[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    flat = feature.permute(0, 2, 3, 1).reshape(images * height * width, channels)
    pooled = _WeightedRows.apply(flat, index.reshape(-1, 4), weights.reshape(-1, 4))
    return pooled.view(len(rois), output_size, output_size, channels).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Both neighbouring cells (r, s, 2) of positions (r, s) and their weights, 0 beyond a cell outside the map."""
    inside = (position >= -1) & (position <= length)
    position = position.clamp(min=0)
    low = position.long()
    last = low >= length - 1
    low = low.clamp(max=length - 1)
    share = torch.where(last, 0.0, position - low)
    weights = torch.stack([1 - share, share], dim=-1) * inside[..., None]
    return torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1), weights


class _WeightedRows(torch.autograd.Function):
    """(p, C) rows, (k, 4) indices and weights to (k, C) weighted sums; a gradient for the rows only."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.num_rows = len(rows)
        return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, weights = ctx.saved_tensors
        sources = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "invariant checks are implicitly disabled": they hold
            spread = torch.sparse_coo_tensor(
                torch.stack([index.reshape(-1), sources]), weights.reshape(-1), (ctx.num_rows, len(index))
            )
            return torch.sparse.mm(spread, gradients[0].contiguous()), None, None
