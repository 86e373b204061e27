"""What CenterNet is to say about a batch: heatmaps of centres and points, and numbers at single cells."""

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
from modelkit.points.gaussians import draw_gaussian, gaussian_radius, gaussian_window, trusted_cells

_IOU = 0.7
_TINY = 1e-4  # keeps means over nothing finite


@dataclass(slots=True)
class Spots:
    """Numbers that a map is to have at some cells of a batch, as lists that grow.

    Args:
        places: (image, row, column) of each.
        values: of the map's channels there.
        weights: of each channel there, or of all of them.
    """

    places: list[tuple[int, int, int]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)

    def add(self, place: tuple[int, int, int], values: list[float], weights: list[float]) -> None:
        """One more."""
        self.places.append(place)
        self.values.append(values)
        self.weights.append(weights)

    def loss(self, maps: Tensor, counted: Sequence[Sequence[bool]] | None = None) -> Tensor:
        """Mean absolute error of maps (N, C, h, w) over these numbers, each times its weight.

        Args:
            maps: see above.
            counted: which of the numbers the mean is over; None: all.
        """
        if not self.places:
            return maps.sum() * 0
        wanted, weights = (self._numbers(each, maps) for each in (self.values, self.weights))
        number = wanted.numel() if counted is None else sum(map(sum, counted))
        return ((self.at(maps) - wanted).abs() * weights).sum() / (number + _TINY)

    def smooth_loss(self, maps: Tensor) -> Tensor:
        """Smooth L1 (beta 1), summed over channels, mean over places: what corners learn offsets by."""
        if not self.places:
            return maps.sum() * 0
        wanted, weights = (self._numbers(each, maps) for each in (self.values, self.weights))
        loss = F.smooth_l1_loss(self.at(maps), wanted, reduction="none") * weights
        return loss.sum() / (len(self.places) + _TINY)

    def at(self, maps: Tensor) -> Tensor:
        """(k, C) float32: what maps (N, C, h, w) say at the places; there must be any."""
        image, row, column = torch.tensor(self.places, device=maps.device).unbind(1)
        return maps[image, :, row, column].float()

    def _numbers(self, values: list[list[float]], maps: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=maps.device)


@dataclass(slots=True)
class CenterTargets:
    """All of it for a batch of N images on maps of (h, w) cells.

    Args:
        centers: (N, C, h, w) heatmaps, C classes without the background; peaks are 1.
        center_weights: (N, 1, h, w) of their cells.
        sizes, offsets: width and height in cells; what floor took from the centre.
        point_maps: (N, K, h, w) heatmaps of the points.
        point_weights: (N, K, h, w) of their cells.
        points: 2 K differences from the centre's cell, x and y by turns; weight 0 where a point is not labelled.
        labelled: of ``points``: which numbers are labelled.
        point_offsets: what floor took from each point.
    """

    centers: Tensor
    center_weights: Tensor
    point_maps: Tensor
    point_weights: Tensor
    sizes: Spots = field(default_factory=Spots)
    offsets: Spots = field(default_factory=Spots)
    points: Spots = field(default_factory=Spots)
    labelled: list[list[bool]] = field(default_factory=list)
    point_offsets: Spots = field(default_factory=Spots)


def center_targets(
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    num_keypoints: int,
    grid_hw: tuple[int, int],
    stride: int,
    device: torch.device,
) -> CenterTargets:
    """Draw the targets of a batch.

    Args:
        targets: in pixels of the padded batch. Crowds are no objects, their cells count nothing.
        num_classes: background included.
        num_keypoints: K.
        grid_hw: rows and columns of the maps.
        stride: of the maps.
        device: of the result.
    """
    images = len(targets)
    drawn = CenterTargets(
        torch.zeros((images, num_classes - 1, *grid_hw), device=device),
        torch.stack([trusted_cells(target, grid_hw, stride, device)[None] for target in targets]),
        torch.zeros((images, num_keypoints, *grid_hw), device=device),
        torch.stack([trusted_cells(t, grid_hw, stride, device).expand(num_keypoints, *grid_hw) for t in targets]),
    )
    for image, target in enumerate(targets):
        weights = torch.stack([object_weights(target, key).float() for key in ("class_weights", "box_weights")], 1)
        objects = torch.nonzero(~crowd_of(target))[:, 0].tolist()
        points = target.get("keypoints") if num_keypoints else None
        for index in objects:
            box = [side / stride for side in target["boxes"][index].tolist()]
            _draw_object(
                drawn,
                image,
                int(target["labels"][index]) - 1,
                box,
                None if points is None else _in_cells(points[index], stride),
                (float(weights[index, 0]), float(weights[index, 1])),
            )
    return drawn


def _in_cells(points: Tensor, stride: int) -> list[list[float]]:
    return [[x / stride, y / stride, v] for x, y, v in points.tolist()]


def _draw_object(
    drawn: CenterTargets,
    image: int,
    channel: int,
    box: list[float],
    points: list[list[float]] | None,
    weights: tuple[float, float],
) -> None:
    rows, columns = drawn.centers.shape[-2:]
    x1, x2 = (min(max(x, 0.0), columns) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), rows) for y in (box[1], box[3]))
    width, height = x2 - x1, y2 - y1
    if width <= 0 or height <= 0:
        return
    radius = max(0, int(gaussian_radius(math.ceil(height), math.ceil(width), _IOU, exact=False)))
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    cell = (min(int(x), columns - 1), min(int(y), rows - 1))
    draw_gaussian(drawn.centers[image, channel], cell, radius)
    window, _ = gaussian_window(drawn.center_weights[image, 0], cell, radius)
    drawn.center_weights[image, 0][window] = weights[0]
    place = (image, cell[1], cell[0])
    drawn.sizes.add(place, [width, height], [weights[1]])
    drawn.offsets.add(place, [x - cell[0], y - cell[1]], [weights[1]])
    if points is not None:
        _draw_points(drawn, image, cell, (x1, y1, x2, y2), radius, points, weights[1])


def _draw_points(
    drawn: CenterTargets,
    image: int,
    cell: tuple[int, int],
    box: tuple[float, float, float, float],
    radius: int,
    points: list[list[float]],
    weight: float,
) -> None:
    rows, columns = drawn.centers.shape[-2:]
    values, labelled = [], []
    for joint, (x, y, v) in enumerate(points):
        known = v > 0 and 0 <= x < columns and 0 <= y < rows
        labelled += [known, known]
        values += [x - cell[0], y - cell[1]] if known else [0.0, 0.0]
        trusted = drawn.point_weights[image, joint]
        if not known:  # it may be anywhere in the object: no background there
            x1, y1, x2, y2 = (int(side) for side in (box[0], box[1], math.ceil(box[2]), math.ceil(box[3])))
            trusted[y1:y2, x1:x2] = torch.where(
                drawn.point_maps[image, joint, y1:y2, x1:x2] > 0, trusted[y1:y2, x1:x2], 0
            )
            continue
        draw_gaussian(drawn.point_maps[image, joint], (int(x), int(y)), radius)
        window, _ = gaussian_window(trusted, (int(x), int(y)), radius)
        trusted[window] = weight
        drawn.point_offsets.add((image, int(y), int(x)), [x - int(x), y - int(y)], [weight])
    drawn.points.add((image, cell[1], cell[0]), values, [weight * known for known in labelled])
    drawn.labelled.append(labelled)
