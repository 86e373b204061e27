"""Charts of a surface on the grids of regions: what they learn from, and how they are laid over the source image.

A chart head gives, on a grid of M x M cells over each region, logits of a coarse segmentation (r, K, M, M) and of the
parts (r, C, M, M), channel 0 of which is background, and for each part the coordinates ``u`` and ``v`` (r, C, M, M).
Cells are pixels of the region: their centres lie at i + 0.5, in losses and in results alike. detectron2's losses look
half a cell further (its grid begins at the centre of the first cell), its results do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.carriers.landmark_detections import PastedSurface

COARSE, PARTS, U, V = "coarse_logits", "part_logits", "u", "v"


def places_in_boxes(points_xy: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Points (r, P, 2) as shares of the sides of their boxes (r, 4), from -1 to 1, and (r, P) bool: inside."""
    start, end = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:]
    shares = (points_xy - start) / (end - start)
    return 2 * shares - 1, ((shares >= 0) & (shares < 1)).all(-1)


def values_at(charts: Tensor, places: Tensor) -> Tensor:
    """(r, C, M, M) at places (r, P, 2) from -1 to 1, bilinear between the centres of cells: (r, C, P)."""
    return F.grid_sample(charts, places[:, :, None], padding_mode="border", align_corners=False)[..., 0]


def point_losses(raw: Mapping[str, Tensor], points: Tensor, boxes: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Losses at labelled points that lie in their region, those of regions of weight 0 left out.

    Args:
        raw: of all regions, see the module.
        points: (r, P, 5) of x, y, part, u and v, pixels of the boxes; part -1 where there is none.
        boxes: (r, 4) xyxy.
        weights: (r,) of regions.

    Returns:
        ``loss_part``: mean cross-entropy over the parts; ``loss_u`` and ``loss_v``: *sums* of the smooth L1 distance in
        the channel of the true part, over points that lie on one.
    """
    places, inside = places_in_boxes(points[..., :2], boxes)
    part = points[..., 2].long()
    known = inside & (part >= 0) & (weights > 0)[:, None]
    part, weight = part.clamp(min=0), weights[:, None].expand(part.shape)
    errors = F.cross_entropy(values_at(raw[PARTS], places), part, reduction="none")
    losses = {"loss_part": (errors * weight)[known].sum() / known.sum().clamp(min=1)}
    on_part = known & (part > 0)
    for axis, name in enumerate((U, V), start=3):
        found = values_at(raw[name], places).gather(1, part[:, None])[:, 0]
        apart = F.smooth_l1_loss(found, points[..., axis], reduction="none")
        losses[f"loss_{name}"] = (apart * weight)[on_part].sum()
    return losses


def coarse_targets(maps: Tensor, boxes: Tensor, matched: Tensor, cells: int) -> Tensor:
    """Maps (n, H, W) of matched objects (r,) at the centres of the cells of boxes (r, 4): (r, cells, cells) long."""
    shares = (torch.arange(cells, device=boxes.device) + 0.5) / cells
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None] * shares[None, :, None] + boxes[:, None, :2]
    columns, rows = sides.floor().long().unbind(-1)
    rows, columns = rows.clamp(0, maps.shape[1] - 1), columns.clamp(0, maps.shape[2] - 1)
    return maps[matched[:, None, None], rows[:, :, None], columns[:, None, :]].long()


def coarse_loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of logits (r, K, M, M) against (r, M, M) long, by weights (r,); weight 0 does not count."""
    per_region = F.cross_entropy(logits, wanted, reduction="none").mean((1, 2))
    return (per_region * weights).sum() / (weights > 0).sum().clamp(min=1)


def paste(charts: Mapping[str, Tensor], box: Tensor, size_hw: SizeHW) -> PastedSurface:
    """The surface of one object in the pixels of the source image whose centres lie in its box.

    The part of a pixel is the likeliest one where the coarse segmentation is not background; logits and coordinates
    are enlarged before either is decided.

    Args:
        charts: of the object, without the axis of regions.
        box: (4,) xyxy, source pixels.
        size_hw: of the source image.
    """
    x1, y1, x2, y2 = box.tolist()
    columns, rows = _pixels(x1, x2, size_hw[1]), _pixels(y1, y2, size_hw[0])
    ys = (torch.arange(rows.start, rows.stop, device=box.device) + 0.5)[:, None].expand(-1, len(columns))
    xs = (torch.arange(columns.start, columns.stop, device=box.device) + 0.5)[None].expand(len(rows), -1)
    places = places_in_boxes(torch.stack([xs, ys], -1).view(1, -1, 2), box[None])[0]
    coarse, part = (values_at(charts[name][None], places)[0].argmax(0) for name in (COARSE, PARTS))
    part = part * (coarse > 0)
    iuv = torch.stack([part, torch.zeros_like(part), torch.zeros_like(part)]).to(torch.uint8)
    for number in part.unique().tolist():  # all coordinates of all parts would be 48 maps of the object's size
        if number:
            here = part == number
            both = torch.stack([charts[U][number], charts[V][number]])[None]
            iuv[1:, here] = (values_at(both, places[:, here])[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return PastedSurface((columns.start, rows.start), iuv.view(3, len(rows), len(columns)))


def _pixels(start: float, end: float, limit: int) -> range:
    """Pixels whose centres lie between, within an image of ``limit``; at least one."""
    first = min(max(math.ceil(start - 0.5), 0), limit - 1)
    return range(first, min(max(math.ceil(end - 0.5), first + 1), limit))
