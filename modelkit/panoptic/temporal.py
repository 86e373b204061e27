"""VPSNet's fusion of two frames (Kim et al. 2020, 4.1): gather, align by flow, refine, attend, scatter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.layers.backbones import Backbone
from modelkit.layers.stretching import stretch
from modelkit.layers.warping import warp
from modelkit.registry import register

_SLOPE = 0.1
_TILE = 8  # cells a side: of 16 x 16 products that a tile computes with reach 4, a third are wanted


def correlate(current: Tensor, other: Tensor, reach: int) -> Tensor:
    """Mean product over channels of every cell with the cells around it in the other map.

    The usual way takes one pass over both maps per displacement and is bound by memory. Here tiles of the one are
    multiplied with their wider neighbourhoods in the other, as matrices, and the wanted products are picked out.

    Args:
        current, other: (N, C, H, W) of one shape.
        reach: displacements -reach .. reach in both axes; cells beyond the border are zero.

    Returns:
        (N, (2 reach + 1)**2, H, W), displacements row by row.
    """
    images, channels, height, width = current.shape
    span, wide = 2 * reach + 1, _TILE + 2 * reach
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    extra = (0, columns * _TILE - width, 0, rows * _TILE - height)
    around = (reach, reach + extra[1], reach, reach + extra[3])
    tiles = F.pad(current, extra).unfold(2, _TILE, _TILE).unfold(3, _TILE, _TILE)
    tiles = tiles.permute(0, 2, 3, 4, 5, 1).reshape(-1, _TILE * _TILE, channels)
    views = F.pad(other, around).unfold(2, wide, _TILE).unfold(3, wide, _TILE)
    views = views.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, wide * wide)
    products = torch.bmm(tiles, views) / channels
    products = products.view(-1, _TILE, _TILE, wide, wide)
    # of the neighbourhood of the tile, each cell (y, x) wants the part that starts at (y, x)
    stride = products.stride()
    wanted = products.as_strided(
        (len(products), _TILE, _TILE, span, span),
        (stride[0], stride[1] + stride[3], stride[2] + stride[4], stride[3], stride[4]),
    )
    wanted = wanted.reshape(images, rows, columns, _TILE, _TILE, span * span).permute(0, 5, 1, 3, 2, 4)
    return wanted.reshape(images, span * span, rows * _TILE, columns * _TILE)[:, :, :height, :width]


class AttentionFusion(nn.Module):
    """Temporal and spatial attention over two aligned maps (after EDVR, Wang et al. 2019).

    Args:
        channels: of each map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, channels, 3, padding=1)
        self.embed_current = nn.Conv2d(channels, channels, 3, padding=1)
        self.fuse = nn.Conv2d(2 * channels, channels, 1)
        self.attend = nn.Conv2d(2 * channels, channels, 1)
        self.pooled = nn.Conv2d(2 * channels, channels, 1)
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1)
        self.fine = nn.Conv2d(channels, channels, 3, padding=1)
        self.add = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.LeakyReLU(_SLOPE), nn.Conv2d(channels, channels, 1)
        )
        self.activation = nn.LeakyReLU(_SLOPE)

    def forward(self, current: Tensor, aligned: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N, C, H, W); each frame weighs as much as it resembles the current one."""
        centre = self.embed_current(current)
        weighed = torch.cat(
            [x * (self.embed(x) * centre).sum(1, keepdim=True).sigmoid() for x in (current, aligned)], dim=1
        )
        fused = self.activation(self.fuse(weighed))
        attention = self.activation(self.attend(weighed))
        halves = [pool(attention, 3, stride=2, padding=1) for pool in (F.max_pool2d, F.avg_pool2d)]
        attention = self.activation(self.pooled(torch.cat(halves, dim=1)))
        attention = self.activation(self.coarse(attention))
        attention = self.fine(stretch(attention, fused.shape[-2:]))
        return fused * 2 * attention.sigmoid() + self.add(attention)


@register("temporal", "temporal_fusion")
class TemporalFusion(nn.Module):
    """The pyramid of a frame, enriched by what the frame before saw.

    Args:
        neck: whose maps come in, of equal width.
        reach: of the correlation that refines the flow, cells.
        refine_channels: widths of the convolutions that refine it.
        start_alone: at first no frame changes another's features, so that what sees them is as good as it was.
    """

    def __init__(
        self,
        neck: Backbone,
        *,
        reach: int = 4,
        refine_channels: tuple[int, ...] = (64, 64, 32),
        start_alone: bool = False,
    ) -> None:
        super().__init__()
        self.levels = tuple(neck.out_channels)
        channels = neck.out_channels[self.levels[0]]
        self.reach = reach
        widths = [channels + (2 * reach + 1) ** 2 + 2, *refine_channels]
        layers: list[nn.Module] = []
        for index, width in enumerate(refine_channels):
            layers += [nn.Conv2d(widths[index], width, 3, padding=1), nn.LeakyReLU(_SLOPE)]
        self.refine_flow = nn.Sequential(*layers, nn.Conv2d(widths[-1], 2, 3, padding=1))
        self.attention = AttentionFusion(channels)
        self.refine = nn.Conv2d(channels, channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if start_alone:
            nn.init.zeros_(self.refine.weight)

    def gather(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, C, h, w): the mean of all maps, brought to the finest one's size by nearest neighbour."""
        finest = features[self.levels[0]]
        total = finest.clone()
        for level in self.levels[1:]:
            total += F.interpolate(features[level], size=finest.shape[-2:])
        return total / len(self.levels)

    def align(self, gathered: Tensor, previous: Tensor, flow: Tensor) -> Tensor:
        """What the frame before saw, (N, C, h, w), moved to where this frame sees it: by the flow, then by its rest."""
        aligned = warp(previous, flow)
        correlation = correlate(gathered, aligned, self.reach)
        rest = self.refine_flow(torch.cat([gathered, correlation, flow.to(gathered.dtype)], dim=1))
        return warp(aligned, rest)

    def forward(
        self, features: Mapping[str, Tensor], gathered: Tensor, previous: Tensor, flow: Tensor
    ) -> dict[str, Tensor]:
        """The maps of this frame, each with what both frames agree on added.

        Args:
            features: pyramid of this frame.
            gathered: (N, C, h, w), its ``gather``.
            previous: (N, C, h, w), that of the frame before.
            flow: (N, 2, h, w) in cells, from this frame to the one before.
        """
        fused = self.refine(self.attention(gathered, self.align(gathered, previous, flow)))
        return {
            level: feature + (fused if level == self.levels[0] else F.adaptive_max_pool2d(fused, feature.shape[-2:]))
            for level, feature in features.items()
        }
