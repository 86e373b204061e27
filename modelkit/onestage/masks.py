"""Masks from prototypes (Bolya et al. 2019): one linear combination per detection, a sigmoid, cropped by the box."""

from __future__ import annotations

import torch
from torch import Tensor

_PADDING = 1.0  # cells of the prototypes' grid, on every side of the box


def mask_logits(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """(k, h, w) prototypes and (n, k) coefficients to (n, h, w)."""
    return torch.einsum("nk,khw->nhw", coefficients, prototypes)


def assemble_masks(prototypes: Tensor, coefficients: Tensor, boxes_on_grid: Tensor) -> Tensor:
    """(n, h, w) probabilities on the prototypes' grid, zero outside of each box.

    Args:
        prototypes: (k, h, w), not negative.
        coefficients: (n, k) in [-1, 1]; negative ones subtract a prototype.
        boxes_on_grid: (n, 4) xyxy in cells; may leave the grid.
    """
    inside = crop_window(boxes_on_grid, (prototypes.shape[1], prototypes.shape[2]))
    return mask_logits(prototypes, coefficients).sigmoid() * inside


def crop_window(boxes_on_grid: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(n, h, w) bool: cells whose index lies within a box widened by one cell and clipped to the grid."""
    height, width = grid_hw
    first = (boxes_on_grid[:, :2] - _PADDING).clamp(min=0)
    last = boxes_on_grid[:, 2:] + _PADDING
    columns = torch.arange(width, device=boxes_on_grid.device)
    rows = torch.arange(height, device=boxes_on_grid.device)
    in_columns = (columns >= first[:, :1]) & (columns < last[:, :1])
    in_rows = (rows >= first[:, 1:]) & (rows < last[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None, :]
