"""Prior boxes of one-stage detectors, and the code that a network speaks about them (Liu et al. 2016, SSD).

Boxes are in pixels of the padded batch. The code does not depend on the unit: it is the same for sides of 0 .. 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelkit.carriers import SizeHW

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


@functools.lru_cache(maxsize=32)
def prior_boxes(
    padded_hw: SizeHW,
    strides: tuple[int, ...],
    scales: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    square: bool,
    device: torch.device,
    spread: bool = True,
) -> Tensor:
    """Priors of every cell of every map, in the order in which heads flatten: map, row, column, scale, ratio.

    Args:
        padded_hw: of the batch; a map of stride s has ceil(side / s) cells a side.
        strides: one a map, fine to coarse.
        scales: sides in pixels, one tuple a map.
        ratios: width over height.
        square: both sides scale * sqrt(ratio): priors of a cell then differ in size alone. YOLACT was trained with it.
        device: of the result.
        spread: cells divide the batch evenly; else each is as large as its stride, and the last ones may lie across
            the border (RetinaFace). The same where strides divide the sides.

    Returns:
        (P, 4) float32: centre x, centre y, width, height.
    """
    with torch.inference_mode(False):  # the result is kept, and training must be able to use it after prediction
        return _prior_boxes(padded_hw, strides, scales, ratios, square, spread).to(device)


def _prior_boxes(
    padded_hw: SizeHW,
    strides: tuple[int, ...],
    scales: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    square: bool,
    spread: bool,
) -> Tensor:
    parts = []
    for stride, sides in zip(strides, scales, strict=True):
        rows, columns = (math.ceil(side / stride) for side in padded_hw)
        height, width = padded_hw if spread else (rows * stride, columns * stride)
        y = (torch.arange(rows) + 0.5) / rows * height
        x = (torch.arange(columns) + 0.5) / columns * width
        widths = torch.tensor([side * math.sqrt(ratio) for side in sides for ratio in ratios])
        heights = widths if square else torch.tensor([side / math.sqrt(ratio) for side in sides for ratio in ratios])
        cells = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        sizes = torch.stack([widths, heights], dim=-1)
        shape = (rows, columns, len(sizes), 2)
        parts.append(torch.cat([cells[:, :, None].expand(shape), sizes.expand(shape)], dim=-1).reshape(-1, 4))
    return torch.cat(parts)


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) centre and size to xyxy."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encode_boxes(boxes_xyxy: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """(n, 4) boxes seen from their priors: shifts in tenths of the prior's size, log sizes in fifths."""
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    shift = (centre - priors_cxcywh[:, :2]) / (CENTRE_VARIANCE * priors_cxcywh[:, 2:])
    growth = torch.log((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / priors_cxcywh[:, 2:]) / SIZE_VARIANCE
    return torch.cat([shift, growth], dim=1)


def decode_boxes(deltas: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """The inverse of ``encode_boxes``: (n, 4) to xyxy."""
    centre = priors_cxcywh[:, :2] + deltas[:, :2] * CENTRE_VARIANCE * priors_cxcywh[:, 2:]
    size = priors_cxcywh[:, 2:] * torch.exp(deltas[:, 2:] * SIZE_VARIANCE)
    first = centre - size / 2
    return torch.cat([first, first + size], dim=1)


def as_tuples(scales: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Nested lists of a config as what ``prior_boxes`` takes."""
    return tuple(tuple(sides) for sides in scales)
