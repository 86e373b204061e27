"""RoIAlign over a pyramid: every box is pooled from the map that fits its size (Lin et al. 2017, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from modelkit.detection.gather_pooling import roi_align_gather
from modelkit.layers.backbones import Backbone


class PyramidRoIAlign(nn.Module):
    """Boxes to features of a fixed size; strides are declared by the neck, never guessed from image sizes.

    A box of area a goes to map floor(canonical_level + log2(sqrt(a) / canonical_scale) + 1e-6), clipped to the maps
    in use. RoIAlign is torchvision's without the half-pixel shift (``aligned=False``).

    Args:
        neck: whose maps come in.
        levels: names of the maps to pool from, fine to coarse; consecutive.
        output_size: rows and columns of the pooled features.
        sampling_ratio: bilinear samples per output cell and axis.
        canonical_scale: side in pixels of the box that belongs to ``canonical_level``.
        canonical_level: k of p<k>.
    """

    def __init__(
        self,
        neck: Backbone,
        levels: Sequence[str],
        output_size: int,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self._scales = [1 / neck.strides[level] for level in levels]
        self._finest, self._coarsest = (int(math.log2(neck.strides[level])) for level in (levels[0], levels[-1]))
        self.output_size, self.sampling_ratio = output_size, sampling_ratio
        self.canonical_scale, self.canonical_level = canonical_scale, canonical_level

    def level_of(self, boxes_xyxy: Tensor) -> Tensor:
        """Index into ``levels`` for each box (n, 4) in resized pixels."""
        sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).unbind(1)
        size = torch.sqrt(sides[0] * sides[1])
        wanted = torch.floor(self.canonical_level + torch.log2(size / self.canonical_scale) + 1e-6)
        return wanted.clamp(self._finest, self._coarsest).to(torch.int64) - self._finest

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps and boxes (n_i, 4) per image in resized pixels to (sum n_i, C, output_size, output_size)."""
        image_index = torch.cat([torch.full_like(found[:, :1], i) for i, found in enumerate(boxes)])
        rois = torch.cat([image_index, torch.cat(list(boxes))], dim=1)
        maps = [features[level] for level in self.levels]
        if len(maps) == 1:
            return self._pool(maps[0], rois, self._scales[0])
        levels = self.level_of(rois[:, 1:])
        pooled = maps[0].new_zeros((rois.shape[0], maps[0].shape[1], self.output_size, self.output_size))
        for index, (feature, scale) in enumerate(zip(maps, self._scales, strict=True)):
            chosen = torch.where(levels == index)[0]
            pooled[chosen] = self._pool(feature, rois[chosen], scale)
        return pooled

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        if feature.requires_grad and self.sampling_ratio == 1 and len(rois) and feature.device.type == "cpu":
            return roi_align_gather(feature, rois, self.output_size, scale)
        return roi_align(feature, rois, self.output_size, scale, self.sampling_ratio, aligned=False)
