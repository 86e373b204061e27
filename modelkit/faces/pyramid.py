"""RetinaFace's pyramid with its context modules (Deng et al. 2019; as in biubug6/Pytorch_Retinaface).

Unlike Lin et al. 2017 every convolution has a norm and an activation, and the coarsest map gets no 3x3 convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.mobilenet_v1 import convolution
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.registry import register

_NARROW = 64  # up to so many channels the ReLUs leak


class SSHContext(nn.Module):
    """Three receptive fields side by side (Najibi et al. 2017): 3x3, and chains of two and three 3x3 convolutions.

    Args:
        channels: that come in and go out; divisible by 4.
        make_norm: after every convolution.
        negative_slope: of the activations inside of the chains.
    """

    def __init__(self, channels: int, make_norm: NormLayer, negative_slope: float) -> None:
        super().__init__()
        quarter = channels // 4
        self.near = convolution(channels, channels // 2, 3, make_norm, None)
        self.shared = convolution(channels, quarter, 3, make_norm, negative_slope)
        self.middle = convolution(quarter, quarter, 3, make_norm, None)
        self.far = nn.Sequential(
            convolution(quarter, quarter, 3, make_norm, negative_slope),
            convolution(quarter, quarter, 3, make_norm, None),
        )

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        return F.relu(torch.cat([self.near(x), self.middle(shared), self.far(shared)], dim=1))


@register("neck", "retinaface_fpn")
class RetinaFacePyramid(Backbone):
    """Maps ``c*`` to ``p*`` of one width.

    Args:
        backbone: whose maps come in, consecutive ones, fine to coarse.
        channels: of every output map.
        norm: "batch", "frozen_batch" or "group".
    """

    def __init__(self, backbone: Backbone, *, channels: int = 64, norm: str = "batch") -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        if make_norm is None or channels % 4:
            raise ConfigError(f"retinaface_fpn needs a norm and channels that 4 divides, got {norm!r} and {channels}")
        slope = 0.1 if channels <= _NARROW else 0.0
        names = {f"p{name[1:]}": width for name, width in backbone.out_channels.items()}
        self.laterals = nn.ModuleDict(
            {n: convolution(width, channels, 1, make_norm, slope) for n, width in names.items()}
        )
        merged = list(names)[:-1]
        self.merges = nn.ModuleDict({n: convolution(channels, channels, 3, make_norm, slope) for n in merged})
        self.contexts = nn.ModuleDict({n: SSHContext(channels, make_norm, slope) for n in names})
        self.declare(dict.fromkeys(names, channels))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps = {name: lateral(features[f"c{name[1:]}"]) for name, lateral in self.laterals.items()}
        names = list(maps)
        for fine, coarse in reversed(list(itertools.pairwise(names))):
            enlarged = F.interpolate(maps[coarse], size=maps[fine].shape[-2:], mode="nearest")
            maps[fine] = self.merges[fine](maps[fine] + enlarged)
        return {name: self.contexts[name](x) for name, x in maps.items()}
