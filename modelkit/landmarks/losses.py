"""Losses on heatmaps and on coordinates. A point of weight 0 gives no gradient; one of half the weight half of it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CoordinateLoss = Literal["l1", "smooth_l1", "wing"]


def heatmap_loss(maps: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Half the mean squared error of each map (N, K, h, w), weighted by (N, K), over the maps of some weight."""
    errors = _differences(maps, wanted, weights[..., None, None])
    return _mean(0.5 * (errors**2).mean((-2, -1)), weights)


def coordinate_loss(points_xy: Tensor, wanted_xy: Tensor, weights: Tensor, kind: CoordinateLoss) -> Tensor:
    """The error of each point (N, K, 2) in x and y, weighted by (N, K), over the points of some weight."""
    differences = _differences(points_xy, wanted_xy, weights[..., None])
    match kind:
        case "l1":
            errors = differences.abs()
        case "smooth_l1":
            errors = F.smooth_l1_loss(differences, torch.zeros_like(differences), reduction="none")
        case "wing":
            errors = wing(differences)
    return _mean(errors.mean(-1), weights)


def _differences(found: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """0 where the weight is: a point that nobody labelled may be anywhere, and be no number."""
    return (found - wanted).where(weights > 0, 0.0)


def wing(differences: Tensor, width: float = 10.0, epsilon: float = 2.0) -> Tensor:
    """w ln(1 + |x| / e) where |x| < w, beyond that |x| - C, which goes on from there (Feng et al. 2018)."""
    size = differences.abs()
    offset = width - width * math.log1p(width / epsilon)
    return (width * (size / epsilon).log1p()).where(size < width, size - offset)


def _mean(errors: Tensor, weights: Tensor) -> Tensor:
    return (errors * weights).sum() / (weights > 0).sum().clamp(min=1)
