"""From a key frame's features to a later frame's: a small flow network, warping, refinement (Liu et al. 2020,
YolactEdge, sections 3.2 and 3.3).

Flow is backward (where in the key frame does this cell's content come from) in eighths of the [-1, 1] range that
``grid_sample`` uses: 8 means half the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.warping import warp
from modelkit.onestage.pyramid import add_upsampled
from modelkit.registry import register

FLOW_UNIT = 8.0
_SLOPE = 0.1


class Motion(NamedTuple):
    """How a map becomes another frame's: ``warp(map, flow) * scale + bias``; (N, 2 or channels, h, w) each.

    Attributes:
        flow: in eighths of [-1, 1]; cells that come from outside of the map are zero.
    """

    flow: Tensor
    scale: Tensor
    bias: Tensor

    def apply(self, stored: Tensor) -> Tensor:
        """The map of the other frame."""
        return warp(stored, flow_in_cells(self.flow)) * self.scale + self.bias


def flow_in_cells(flow: Tensor) -> Tensor:
    """(N, 2, h, w) flow in the network's unit to displacements in cells of its own map, as ``layers.warp`` takes them.

    The network's range reaches from the centre of the first cell (-1) to that of the last (1).
    """
    height, width = flow.shape[-2:]
    return flow * flow.new_tensor([(width - 1) / 2, (height - 1) / 2])[:, None, None] / FLOW_UNIT


def flow_from_pixels(displacement: Tensor, map_hw: SizeHW) -> Tensor:
    """(N, 2, H, W) displacement (dx, dy) in pixels of this image to the network's unit on a map of (h, w) cells.

    A pixel is w / W cells wide; the unit depends on the map, for its range ends at the centres of the outer cells.
    """
    image_hw = displacement.shape[-2:]
    down, across = (2 * cells / (pixels * max(1, cells - 1)) for cells, pixels in zip(map_hw, image_hw, strict=True))
    return displacement * displacement.new_tensor([across, down])[:, None, None] * FLOW_UNIT


class _MotionHead(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.flow = nn.Conv2d(width, 2, 3, padding=1, bias=False)
        self.scale = nn.Conv2d(width, channels, 1)
        self.bias = nn.Conv2d(width, channels, 1)
        for convolution in (self.flow, self.scale, self.bias):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in")
        _fill_bias(self.scale, 1.0)
        _fill_bias(self.bias, 0.0)

    def forward(self, x: Tensor) -> Motion:
        return Motion(self.flow(x), self.scale(x), self.bias(x))


class FlowNetMini(nn.Module):
    """Motion at three resolutions, coarse to fine, from two reduced maps of the finest one.

    Args:
        width: channels of each reduced map, and of the first encoder stage; the next two are twice and four times so.
        channels: of the maps that will be warped.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.encode1 = nn.Sequential(_convolution(2 * width, width), _convolution(width, width))
        self.encode2 = nn.Sequential(_convolution(width, 2 * width, 2), _convolution(2 * width, 2 * width))
        self.encode3 = nn.Sequential(_convolution(2 * width, 4 * width, 2), _convolution(4 * width, 4 * width))
        self.motion3 = _MotionHead(4 * width, channels)
        self.motion2 = _MotionHead(4 * width + 2, channels)
        self.motion1 = _MotionHead(2 * width + 2, channels)
        self.feature3 = nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False)
        self.feature2 = nn.Conv2d(4 * width + 2, width, 3, padding=1, bias=False)
        self.upflow3 = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.upflow2 = nn.Conv2d(2, 2, 3, padding=1, bias=False)

    def forward(self, target: Tensor, source: Tensor, *, finest: bool = False) -> list[Motion]:
        """Motion of two maps (N, width, h, w), finest first.

        Args:
            target: of the frame that is wanted.
            source: of the key frame.
            finest: also at the maps' own resolution, which only the training of the flow itself needs; else the
                first entry is at half of it.
        """
        fine = self.encode1(torch.cat([target, source], dim=1))
        middle = self.encode2(fine)
        coarse = self.encode3(middle)
        motion3 = self.motion3(coarse)
        joined = _join(middle, self.feature3, coarse, self.upflow3, motion3.flow)
        motion2 = self.motion2(joined)
        if not finest:
            return [motion2, motion3]
        return [self.motion1(_join(fine, self.feature2, joined, self.upflow2, motion2.flow)), motion2, motion3]


def _join(finer: Tensor, feature: nn.Module, coarse: Tensor, upflow: nn.Module, flow: Tensor) -> Tensor:
    size = finer.shape[-2:]
    up, moved = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (coarse, flow))
    return torch.cat([finer, feature(up), upflow(moved)], dim=1)


@register("neck", "partial_feature_transform")
class PartialFeatureTransform(nn.Module):
    """The pyramid's sums of a frame from those of its key frame and from its own finest lateral.

    Args:
        neck: whose sums are transformed; it must have exactly three laterals.
        width: channels that the flow network compares.
    """

    def __init__(self, neck: Backbone, *, width: int = 64) -> None:
        super().__init__()
        self.levels = tuple(neck.out_channels)[:3]
        channels = neck.out_channels[self.levels[0]]
        if width < 1:
            raise ConfigError(f"partial_feature_transform needs width >= 1, got {width}")
        self.reduce = _convolution(channels, width)
        self.flow_net = FlowNetMini(width, channels)
        self.refine = nn.ModuleDict({level: _convolution(2 * channels, channels) for level in self.levels[1:]})

    def forward(
        self, lateral: Tensor, key_sums: Mapping[str, Tensor], key_reduced: Tensor, *, finest: bool = False
    ) -> tuple[dict[str, Tensor], list[Motion]]:
        """Sums of the wanted frame, fine to coarse, and the motion they were warped by.

        Args:
            lateral: (N, channels, h, w) finest lateral of the wanted frame.
            key_sums: of the key frame; only the two coarser ones are looked at.
            key_reduced: ``reduce`` of the key frame's finest lateral.
            finest: see ``FlowNetMini``; warps nothing, but is among the motions then.
        """
        motions = self.flow_net(self.reduce(lateral), key_reduced, finest=finest)
        pairs = zip(motions[-len(self.refine) :], self.levels[1:], strict=True)
        warped = [motion.apply(key_sums[level]) for motion, level in pairs]
        sums = {self.levels[0]: add_upsampled(warped[0], lateral)}
        fresh = lateral
        for level, moved in zip(self.levels[1:], warped, strict=True):
            fresh = F.interpolate(fresh, size=moved.shape[-2:], mode="bilinear", align_corners=False)
            sums[level] = moved + self.refine[level](torch.cat([moved, fresh], dim=1))
        return sums, motions


def _convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(convolution.weight, _SLOPE, mode="fan_in")
    _fill_bias(convolution, 0.0)
    return nn.Sequential(convolution, nn.LeakyReLU(_SLOPE, inplace=True))


def _fill_bias(convolution: nn.Conv2d, value: float) -> None:
    if convolution.bias is not None:
        nn.init.constant_(convolution.bias, value)
