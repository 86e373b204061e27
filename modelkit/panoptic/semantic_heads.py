"""Dense heads that give class logits at a quarter of the input size from every map of a pyramid.

Contract: ``forward(features) -> {"semantic_logits": (N, C, h, w)}`` on the grid of the finest map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from modelkit.detection.roi_heads import pooled_levels
from modelkit.layers.backbones import Backbone
from modelkit.layers.deformable import OffsetConv2d
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.layers.stretching import stretch
from modelkit.registry import register


@register("dense_head", "semantic_fpn")
class SemanticFPNHead(nn.Module):
    """Panoptic FPN's branch (Kirillov et al. 2019, 3.2): every map at the finest one's size, then their sum.

    Args:
        neck: whose maps p2 .. p5 come in.
        num_channels: of the logits.
        channels: of the 3x3 convolutions.
        norm: after each convolution; None for a bias instead.
    """

    def __init__(self, neck: Backbone, num_channels: int, *, channels: int = 128, norm: str | None = "group") -> None:
        super().__init__()
        self.levels = pooled_levels(neck)
        finest = neck.strides[self.levels[0]]
        self.steps = nn.ModuleDict()
        for level in self.levels:
            doublings = int(math.log2(neck.strides[level] / finest))
            widths = [neck.out_channels[level]] + [channels] * max(1, doublings)
            self.steps[level] = nn.ModuleList(_convolution(nn.Conv2d, a, b, norm) for a, b in pairwise(widths))
        self.score = nn.Conv2d(channels, num_channels, 1)
        kaiming_initialise(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``semantic_logits`` (N, C, h, w), see the module's contract."""
        total: Tensor | None = None
        for index, level in enumerate(self.levels):
            x = features[level]
            for position, step in enumerate(cast(nn.ModuleList, self.steps[level]), start=1):
                finer = self.levels[max(0, index - position)]  # one level up each time: its exact size, odd ones too
                x = stretch(step(x), features[finer].shape[-2:])
            total = x if total is None else total + x
        return {"semantic_logits": self.score(total)}


@register("dense_head", "deformable_semantic")
class DeformableSemanticHead(nn.Module):
    """UPSNet's branch (Xiong et al. 2019, 3.2): one deformable subnet shared by all maps, stretched and concatenated.

    Args:
        neck: whose maps p2 .. p5 come in, of equal width.
        num_channels: of the logits.
        channels: of the deformable 3x3 convolutions: three layers for COCO, [128, 128] for Cityscapes.
        norm: after each of them (VPSNet: "group"), or None as in UPSNet.
    """

    def __init__(
        self,
        neck: Backbone,
        num_channels: int,
        *,
        channels: Sequence[int] = (256, 128, 128),
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.levels = pooled_levels(neck)
        widths = [neck.out_channels[self.levels[0]], *channels]
        self.subnet = nn.Sequential(*(_convolution(OffsetConv2d, a, b, norm) for a, b in pairwise(widths)))
        self.score = nn.Conv2d(widths[-1] * len(self.levels), num_channels, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``semantic_logits`` (N, C, h, w), see the module's contract."""
        size_hw = features[self.levels[0]].shape[-2:]
        maps = [stretch(self.subnet(features[level]), size_hw) for level in self.levels]
        return {"semantic_logits": self.score(torch.cat(maps, dim=1))}


def _convolution(kind: Callable[..., nn.Module], channels: int, out_channels: int, norm: str | None) -> nn.Sequential:
    """A 3x3 convolution, its norm, ReLU. A deformable one keeps its bias beside a norm, as VPSNet has it."""
    make_norm: NormLayer | None = norm_layer(norm)
    bias = make_norm is None or kind is OffsetConv2d
    layers = [kind(channels, out_channels, 3, padding=1, bias=bias)]
    if make_norm is not None:
        layers.append(make_norm(out_channels))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
