"""What CornerNet is to say about a batch: heatmaps of corners (and centres), offsets, and which corners are a pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.detection.targets import object_weights
from modelkit.onestage.matching import crowd_of
from modelkit.points.center_targets import Spots
from modelkit.points.gaussians import draw_gaussian, gaussian_radius, gaussian_window, trusted_cells

CORNERS = ("top_left", "bottom_right")
CENTER = "center"
_TINY = 1e-4


@dataclass(frozen=True, slots=True)
class Drawing:
    """How targets are drawn.

    Args:
        kinds: the points of an object that have maps, among ``top_left``, ``bottom_right`` and ``center``.
        iou, exact: of ``gaussian_radius``.
        sigma_shares: by kind, of ``draw_gaussian``.
    """

    kinds: tuple[str, ...]
    iou: float
    exact: bool
    sigma_shares: Mapping[str, float] = field(
        default_factory=lambda: {"top_left": 1 / 6, "bottom_right": 1 / 6, "center": 1 / 5}
    )


@dataclass(slots=True)
class KindTargets:
    """Of one kind of point in a batch.

    Args:
        maps: (N, C, h, w) heatmaps, C classes without the background.
        weights: (N, 1, h, w) of their cells.
        offsets: what floor took from each object's point, in the order of images and objects.
    """

    maps: Tensor
    weights: Tensor
    offsets: Spots = field(default_factory=Spots)


def corner_targets(
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    grid_hw: tuple[int, int],
    stride: int,
    drawing: Drawing,
    device: torch.device,
) -> dict[str, KindTargets]:
    """Draw the targets of a batch; see ``center_targets``."""
    trusted = torch.stack([trusted_cells(target, grid_hw, stride, device)[None] for target in targets])
    shape = (len(targets), num_classes - 1, *grid_hw)
    drawn = {kind: KindTargets(torch.zeros(shape, device=device), trusted.clone()) for kind in drawing.kinds}
    for image, target in enumerate(targets):
        weights = torch.stack([object_weights(target, key).float() for key in ("class_weights", "box_weights")], 1)
        for index in torch.nonzero(~crowd_of(target))[:, 0].tolist():
            box = [side / stride for side in target["boxes"][index].tolist()]
            channel = int(target["labels"][index]) - 1
            _draw(drawn, drawing, (image, channel), box, (float(weights[index, 0]), float(weights[index, 1])))
    return drawn


def _draw(
    drawn: Mapping[str, KindTargets],
    drawing: Drawing,
    place: tuple[int, int],
    box: list[float],
    weights: tuple[float, float],
) -> None:
    rows, columns = next(iter(drawn.values())).maps.shape[-2:]
    x1, x2 = (min(max(x, 0.0), columns) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), rows) for y in (box[1], box[3]))
    if x2 <= x1 or y2 <= y1:
        return
    radius = gaussian_radius(math.ceil(y2 - y1), math.ceil(x2 - x1), drawing.iou, exact=drawing.exact)
    points = {"top_left": (x1, y1), "bottom_right": (x2, y2), "center": ((x1 + x2) / 2, (y1 + y2) / 2)}
    image, channel = place
    for kind, own in drawn.items():
        x, y = points[kind]
        cell = (min(int(x), columns - 1), min(int(y), rows - 1))
        draw_gaussian(own.maps[image, channel], cell, max(0, int(radius)), drawing.sigma_shares[kind])
        window, _ = gaussian_window(own.weights[image, 0], cell, max(0, int(radius)))
        own.weights[image, 0][window] = weights[0]
        own.offsets.add((image, cell[1], cell[0]), [x - cell[0], y - cell[1]], [weights[1]])


def grouping_losses(tags: Sequence[Tensor], corners: Sequence[Spots]) -> tuple[Tensor, Tensor]:
    """Associative embedding (Newell et al. 2017): corners of an object are to say the same number, objects others.

    Args:
        tags: of top left and bottom right corners, (N, 1, h, w) each.
        corners: where they are; the same objects in the same order.

    Returns:
        (pull, push), summed over images; push keeps objects a distance of 1 apart. A pair of objects weighs what the
        lesser of them does.
    """
    pull, push = tags[0].sum() * 0, tags[1].sum() * 0
    if not corners[0].places:
        return pull, push
    first, last = (each.at(own)[:, 0] for each, own in zip(corners, tags, strict=True))
    weights = first.new_tensor(corners[0].weights)[:, 0]
    images = torch.tensor([place[0] for place in corners[0].places], device=first.device)
    for image in images.unique().tolist():
        here = images == image
        a, b, weight, count = first[here], last[here], weights[here], int(here.sum())
        middle = (a + b) / 2
        pull = pull + (((a - middle) ** 2 + (b - middle) ** 2) * weight).sum() / (count + _TINY)
        near = F.relu(1 - (middle[:, None] - middle).abs()) - 1 / (count + _TINY)
        push = push + (near * torch.minimum(weight[:, None], weight)).sum() / (count * (count - 1) + _TINY)
    return pull, push
