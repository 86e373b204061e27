"""Heatmaps that objects are drawn on, and the loss on them (Law & Deng 2018, CornerNet; Zhou et al. 2019, CenterNet).

A map of stride s has a cell for each s x s pixels of the padded batch; a point (x, y) lies in cell (floor(x / s),
floor(y / s)), and its offset is what floor took away. That is the one pixel convention: nothing is shifted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelkit.onestage.matching import crowd_of

_ALMOST = 1e-4  # probabilities are kept so far from 0 and 1


def gaussian_radius(height: float, width: float, iou: float, *, exact: bool = True) -> float:
    """How far a corner may move so that the box still overlaps the true one of these sides by ``iou``.

    The least of three cases: one corner inside and one outside, both inside, both outside.

    Args:
        height, width: > 0, cells.
        iou: in (0, 1).
        exact: the roots that CornerNet takes today; False: those that CenterNet (both of the name) was trained with,
            which are larger.
    """
    total, area = height + width, height * width
    cases = (
        (1.0, total, area * (1 - iou) / (1 + iou)),
        (4.0, 2 * total, (1 - iou) * area),
        (4 * iou, -2 * iou * total, (iou - 1) * area),
    )
    roots = [math.sqrt(b * b - 4 * a * c) for a, b, c in cases]
    if not exact:
        return min((b + root) / 2 for (_, b, _), root in zip(cases, roots, strict=True))
    signs = (-1, -1, 1)
    return min((b + sign * root) / (2 * a) for (a, b, _), root, sign in zip(cases, roots, signs, strict=True))


def draw_gaussian(heatmap: Tensor, cell_xy: tuple[int, int], radius: int, sigma_share: float = 1 / 6) -> None:
    """Raise a map (h, w) to a Gaussian with peak 1 at a cell, in place; nothing changes outside of its window.

    Args:
        heatmap: float.
        cell_xy: within the map.
        radius: the window has 2 radius + 1 cells a side.
        sigma_share: standard deviation over the window's side.
    """
    window, bell = gaussian_window(heatmap, cell_xy, radius, sigma_share)
    heatmap[window] = torch.maximum(heatmap[window], bell)


def gaussian_window(
    heatmap: Tensor, cell_xy: tuple[int, int], radius: int, sigma_share: float = 1 / 6
) -> tuple[tuple[slice, slice], Tensor]:
    """Where on a map (h, w) the window around a cell lies, and the Gaussian in it; see ``draw_gaussian``."""
    sigma = (2 * radius + 1) * sigma_share
    spans, bells = [], []
    for place, length in zip(reversed(cell_xy), heatmap.shape, strict=True):
        first, last = max(0, place - radius), min(length, place + radius + 1)
        spans.append(slice(first, last))
        distance = torch.arange(first - place, last - place, dtype=heatmap.dtype, device=heatmap.device)
        bells.append(torch.exp(-(distance**2) / (2 * sigma**2)))
    return (spans[0], spans[1]), bells[0][:, None] * bells[1]


def focal_loss(logits: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss: -(1/N) [sum of (1-p)^2 ln p at peaks + sum of (1-y)^4 p^2 ln(1-p) elsewhere].

    Args:
        logits: of any shape.
        wanted: y, the same shape; peaks are exactly 1, and N is their number. Without any the sum is not divided.
        weights: of cells, broadcast; None: 1 everywhere.
    """
    p = logits.float().sigmoid().clamp(_ALMOST, 1 - _ALMOST)
    peaks = wanted == 1
    terms = torch.where(peaks, (1 - p) ** 2 * p.log(), (1 - wanted) ** 4 * p**2 * (1 - p).log())
    total = (terms if weights is None else terms * weights).sum()
    return -total / peaks.sum().clamp(min=1)


def trusted_cells(target: Mapping[str, Any], grid_hw: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """(h, w) float: 0 for cells whose centre lies in an ignored region or a crowd, which may hold anything; else 1.

    Args:
        target: in pixels of the padded batch.
        grid_hw: rows and columns of the map.
        stride: of the map.
        device: of the result.
    """
    trusted = torch.ones(grid_hw, device=device)
    rows, columns = ((torch.arange(side, device=device) + 0.5) * stride for side in grid_hw)
    regions = [target["boxes"][crowd_of(target)], target.get("ignore_boxes", target["boxes"][:0])]
    for x1, y1, x2, y2 in torch.cat(regions).tolist():
        trusted[((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))] = 0
    return trusted


def find_peaks(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells that are not below any neighbour, best first, over all channels of an image.

    Args:
        probabilities: (C, h, w) in [0, 1].
        count: at most so many.

    Returns:
        (score, channel, row, column), each (k,); scores may be 0 where there are fewer peaks.
    """
    around = torch.nn.functional.max_pool2d(probabilities[None], 3, stride=1, padding=1)[0]
    peaks = torch.where(around == probabilities, probabilities, 0).flatten()
    score, place = peaks.topk(min(count, len(peaks)))
    cells = probabilities[0].numel()
    within = place % cells
    width = probabilities.shape[2]
    return score, place // cells, within // width, within % width
