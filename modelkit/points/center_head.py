"""CenterNet's head (Zhou et al. 2019, "Objects as Points"): detection, and poses of many objects at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.errors import ConfigError
from modelkit.exporting.canvas import Canvas
from modelkit.layers.backbones import Backbone
from modelkit.points.center_targets import center_targets
from modelkit.points.detector import PointHead
from modelkit.points.gaussians import find_peaks, focal_loss
from modelkit.registry import register
from modelkit.transform import Geometry

HEATMAP_BIAS = -2.19  # a probability of a tenth: most cells are background
_HEATMAPS = ("centers", "point_maps")
_SURE_PEAK = 0.1  # a joint's own peak is looked at from this probability on
_NEAR = 0.3  # of the larger side of the box: so far may it be from where the centre says it is


@register("dense_head", "center_head")
class CenterHead(PointHead):
    """Two convolutions for each thing that is said of an object at the cell of its centre.

    Args:
        neck: whose finest map comes in.
        num_classes: background included.
        num_keypoints: K; 0 for boxes alone.
        channels: between the two convolutions.
        detections_per_image: so many peaks are objects, and so many of each joint are looked at.
    """

    loss_weights: ClassVar = {
        "loss_center": 1.0,
        "loss_size": 0.1,
        "loss_offset": 1.0,
        "loss_keypoint": 1.0,
        "loss_keypoint_map": 1.0,
        "loss_keypoint_offset": 1.0,
    }

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        num_keypoints: int,
        *,
        channels: int = 64,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.level, self.stride = next(iter(neck.strides.items()))
        self.num_classes, self.num_keypoints = num_classes, num_keypoints
        self.detections_per_image = detections_per_image
        if num_classes < 2:
            raise ConfigError(f"center_head needs a class beside the background, got num_classes {num_classes}")
        widths = {"centers": num_classes - 1, "sizes": 2, "offsets": 2}
        if num_keypoints:
            widths |= {"points": 2 * num_keypoints, "point_maps": num_keypoints, "point_offsets": 2}
        incoming = neck.out_channels[self.level]
        self.branches = nn.ModuleDict(
            {name: _branch(incoming, channels, width, name in _HEATMAPS) for name, width in widths.items()}
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps (N, width, h, w) by name; ``centers`` and ``point_maps`` are logits, the others count cells."""
        return {name: branch(features[self.level]) for name, branch in self.branches.items()}

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """``loss_center, loss_size, loss_offset`` and, with points, ``loss_keypoint, loss_keypoint_map,
        loss_keypoint_offset``; see ``PointHead.loss``. ``box_weights`` weigh points, too."""
        maps = raw["centers"]
        grid_hw = (maps.shape[2], maps.shape[3])
        drawn = center_targets(targets, self.num_classes, self.num_keypoints, grid_hw, self.stride, maps.device)
        losses = {
            "loss_center": focal_loss(maps, drawn.centers, drawn.center_weights),
            "loss_size": drawn.sizes.loss(raw["sizes"]),
            "loss_offset": drawn.offsets.loss(raw["offsets"]),
        }
        if self.num_keypoints:
            losses["loss_keypoint"] = drawn.points.loss(raw["points"], drawn.labelled)
            losses["loss_keypoint_map"] = focal_loss(raw["point_maps"], drawn.point_maps, drawn.point_weights)
            losses["loss_keypoint_offset"] = drawn.point_offsets.loss(raw["point_offsets"])
        return losses

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """Peaks of the centres are objects; peaks outside of an image's own part of the batch are dropped."""
        return [
            self._decode_one({name: maps[k].float() for name, maps in raw.items()}, geometry)
            for k, geometry in enumerate(geometries)
        ]

    def _decode_one(self, raw: Mapping[str, Tensor], geometry: Geometry) -> LandmarkDetections:
        score, channel, row, column = find_peaks(raw["centers"].sigmoid(), self.detections_per_image)
        inside = (row * self.stride < geometry.resized_hw[0]) & (column * self.stride < geometry.resized_hw[1])
        score, channel, row, column = (each[inside & (score > 0)] for each in (score, channel, row, column))
        boxes, points, point_scores = self._read(raw, row, column)
        return LandmarkDetections(
            geometry.source_hw,
            geometry.clipped_boxes_to_source(boxes * self.stride),
            score,
            channel + 1,
            geometry.points_to_source(points * self.stride),
            point_scores,
        )

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``PointHead``."""
        raw = {name: maps[0].float() for name, maps in raw.items()}
        score, channel, row, column = find_peaks(raw["centers"].sigmoid(), self.detections_per_image)
        inside = (torch.stack([row, column], 1) * self.stride < canvas.content_hw).all(1)
        kept = torch.nonzero(inside & (score > 0))[:, 0]
        score, channel, row, column = score[kept], channel[kept], row[kept], column[kept]
        boxes, points, point_scores = self._read(raw, row, column)
        found = {
            "boxes_xyxy": canvas.clipped_to_source(boxes * self.stride), "scores": score, "labels": channel + 1,
        }  # fmt: skip
        if not self.num_keypoints:
            return found
        return {
            **found,
            "keypoints_xy": canvas.points_to_source(points * self.stride),
            "keypoint_scores": point_scores,
        }

    def _read(self, raw: Mapping[str, Tensor], row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (n, 4), points (n, K, 2) and their scores (n, K), all in cells, of objects centred in given cells."""
        cell = torch.stack([column, row], 1).float()
        centre = cell + raw["offsets"][:, row, column].T
        half = raw["sizes"][:, row, column].T / 2
        boxes = torch.cat([centre - half, centre + half], 1)
        if not self.num_keypoints:
            return boxes, cell.new_zeros((cell.shape[0], 0, 2)), cell.new_zeros((cell.shape[0], 0))
        pointed = cell[:, None] + raw["points"][:, row, column].T.unflatten(1, (-1, 2))
        return boxes, *snap_points(raw, pointed, boxes, self.detections_per_image)


def snap_points(raw: Mapping[str, Tensor], pointed: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Move the points that centres point to onto the nearest peak of their own map, where one is near and sure.

    Args:
        raw: ``point_maps`` (K, h, w) logits and ``point_offsets`` (2, h, w) of an image.
        pointed: (n, K, 2), cells.
        boxes: (n, 4) xyxy, cells; a peak must lie in the object's box.
        count: so many peaks of each joint are looked at.

    Returns:
        Points (n, K, 2) and their scores (n, K): that of the peak, or the map's value where no peak was taken.
    """
    maps = raw["point_maps"].sigmoid()
    placed, scores = [], []
    reach = _NEAR * (boxes[:, 2:] - boxes[:, :2]).amax(1)
    for joint, heat in enumerate(maps):
        x, y = (pointed[:, joint, k].long().clamp(0, heat.shape[1 - k] - 1) for k in (0, 1))
        score, _, row, column = find_peaks(heat[None], count)
        peaks = torch.stack([column, row], 1) + raw["point_offsets"][:, row, column].T
        distance = (pointed[:, joint, None] - peaks).square().sum(-1).sqrt()
        distance, nearest = distance.masked_fill(score <= _SURE_PEAK, torch.inf).min(1)
        taken = peaks[nearest]
        near = ((taken >= boxes[:, :2]) & (taken <= boxes[:, 2:])).all(1) & (distance <= reach)
        placed.append(torch.where(near[:, None], taken, pointed[:, joint]))
        scores.append(torch.where(near, score[nearest], heat[y, x]))
    return torch.stack(placed, 1), torch.stack(scores, 1)


def _branch(incoming: int, channels: int, width: int, is_heatmap: bool) -> nn.Sequential:
    """Heatmaps begin with few objects; numbers begin near zero."""
    first, last = nn.Conv2d(incoming, channels, 3, padding=1), nn.Conv2d(channels, width, 1)
    if is_heatmap:
        nn.init.constant_(_bias(last), HEATMAP_BIAS)
    else:
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(_bias(layer))
    return nn.Sequential(first, nn.ReLU(), last)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
