"""CornerNet's head (Law & Deng 2018), and with centres that of CenterNet-triplet (Duan et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modelkit.carriers.geometry import clip_boxes
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.norms import norm_layer
from modelkit.points.center_head import HEATMAP_BIAS
from modelkit.points.corner_pooling import POOLS, PairPooling
from modelkit.points.corner_targets import CENTER, CORNERS, Drawing, KindTargets, corner_targets, grouping_losses
from modelkit.points.detector import PointHead
from modelkit.points.gaussians import focal_loss
from modelkit.points.grouping import confirm_by_centers, group_corners, read_peaks, soft_nms
from modelkit.registry import register
from modelkit.transform import Geometry


@register("dense_head", "corner_head")
class CornerHead(PointHead):
    """Corner pooling and three branches for each kind of point; one such head for each map of a stack.

    Args:
        neck: of a stacked hourglass: a map ``p2`` and those of the stacks before it.
        num_classes: background included.
        num_keypoints: must be 0.
        stacks: of the hourglass; all of them learn, the last one is decoded.
        centers: also find centres, with cascade pooling for the corners; a box then needs a centre.
        pooled_channels: of what is pooled.
        iou, exact_radius: see ``gaussian_radius``.
        peaks: of each kind that are looked at.
        pairs: of corners that are suppressed softly.
        tag_distance: between the numbers of two corners of one object.
        detections_per_image: so many stay.
        norm: "batch", "frozen_batch" or "group".
    """

    loss_weights: ClassVar = {
        "loss_corner": 1.0,
        "loss_center": 1.0,
        "loss_pull": 0.1,
        "loss_push": 0.1,
        "loss_offset": 1.0,
    }

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        num_keypoints: int,
        *,
        stacks: int = 2,
        centers: bool = False,
        pooled_channels: int = 128,
        iou: float = 0.3,
        exact_radius: bool = True,
        peaks: int = 100,
        pairs: int = 1000,
        tag_distance: float = 0.5,
        detections_per_image: int = 100,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        if num_keypoints or num_classes < 2 or make_norm is None:
            raise ConfigError(
                "corner_head finds boxes without points, of a class beside the background at least, and needs a norm; "
                f"got num_keypoints {num_keypoints}, num_classes {num_classes}, {norm!r}"
            )
        self.level, self.stride = next(iter(neck.strides.items()))
        self.num_classes, self.stacks, self.centers = num_classes, stacks, centers
        self.drawing = Drawing((*CORNERS, CENTER) if centers else CORNERS, iou, exact_radius)
        self.peaks, self.pairs, self.tag_distance = peaks, pairs, tag_distance
        self.detections_per_image = detections_per_image
        channels = neck.out_channels[self.level]
        self.heads = nn.ModuleList(
            nn.ModuleDict(
                {
                    kind: _KindHead(
                        channels,
                        PairPooling(channels, pooled_channels, POOLS[kind], make_norm, centers and kind in CORNERS),
                        {"maps": num_classes - 1, "offsets": 2, **({"tags": 1} if kind in CORNERS else {})},
                    )
                    for kind in self.drawing.kinds
                }
            )
            for _ in range(stacks)
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<kind>_maps`` (N, C - 1, h, w) logits, ``<kind>_offsets`` (N, 2, h, w) and, of corners, ``<kind>_tags``.

        In training also those of the stacks before the last one, with ``_stack<k>`` behind their names.
        """
        raw = self._say(self.stacks - 1, features[self.level], "")
        if self.training:
            for k in range(self.stacks - 1):
                raw |= self._say(k, features[f"{self.level}_stack{k}"], f"_stack{k}")
        return raw

    def _say(self, stack: int, x: Tensor, suffix: str) -> dict[str, Tensor]:
        heads: Any = self.heads[stack]
        return {f"{kind}_{n}{suffix}": y for kind, head in heads.items() for n, y in head(x).items()}

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """``loss_corner, loss_pull, loss_push, loss_offset`` and, with centres, ``loss_center``: see ``PointHead``.

        The mean over the stacks. ``box_weights`` weigh offsets and tags.
        """
        maps = raw[f"{CORNERS[0]}_maps"]
        grid_hw = (maps.shape[2], maps.shape[3])
        drawn = corner_targets(targets, self.num_classes, grid_hw, self.stride, self.drawing, maps.device)
        suffixes = ["", *(f"_stack{k}" for k in range(self.stacks - 1) if f"{CORNERS[0]}_maps_stack{k}" in raw)]
        each = [self._stack_losses(raw, suffix, drawn) for suffix in suffixes]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def _stack_losses(
        self, raw: Mapping[str, Tensor], suffix: str, drawn: Mapping[str, KindTargets]
    ) -> dict[str, Tensor]:
        focal = {k: focal_loss(raw[f"{k}_maps{suffix}"], own.maps, own.weights) for k, own in drawn.items()}
        tags, spots = [raw[f"{k}_tags{suffix}"].float() for k in CORNERS], [drawn[k].offsets for k in CORNERS]
        pull, push = grouping_losses(tags, spots)
        offsets = [own.offsets.smooth_loss(raw[f"{kind}_offsets{suffix}"]) for kind, own in drawn.items()]
        losses = {"loss_corner": focal[CORNERS[0]] + focal[CORNERS[1]], "loss_pull": pull, "loss_push": push}
        losses["loss_offset"] = torch.stack(offsets).sum()
        return losses | ({"loss_center": focal[CENTER]} if self.centers else {})

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """Pairs of corners, confirmed by centres if there are any, softly suppressed."""
        return [
            self._decode_one({name: maps[k].float() for name, maps in raw.items()}, geometry)
            for k, geometry in enumerate(geometries)
        ]

    def _decode_one(self, raw: Mapping[str, Tensor], geometry: Geometry) -> LandmarkDetections:
        first, last = (read_peaks(raw, kind, self.peaks) for kind in CORNERS)
        boxes, scores, labels = group_corners(first, last, self.tag_distance, self.pairs)
        boxes = geometry.boxes_to_source(boxes * self.stride)
        if self.centers:
            found = read_peaks(raw, CENTER, self.peaks)
            found = replace(found, xy=geometry.points_to_source(found.xy * self.stride))
            boxes, scores, labels = confirm_by_centers(boxes, scores, labels, found)
        boxes = clip_boxes(boxes, geometry.source_hw)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        kept, score = soft_nms(boxes, scores, labels, count=self.detections_per_image)
        nothing = boxes.new_zeros((len(kept), 0))
        return LandmarkDetections(
            geometry.source_hw, boxes[kept], score, labels[kept] + 1, nothing[..., None].expand(-1, 0, 2), nothing
        )


class _KindHead(nn.Module):
    """Pooling, then a 3x3 and a 1x1 convolution for each thing that is said."""

    def __init__(self, channels: int, pooling: PairPooling, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.pooling = pooling
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, width, 1)
                )
                for name, width in widths.items()
            }
        )
        nn.init.constant_(self.branches["maps"][2].bias, HEATMAP_BIAS)  # type: ignore[index, arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = self.pooling(x)
        return {name: branch(pooled) for name, branch in self.branches.items()}
