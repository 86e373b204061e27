"""YOLACT's pyramid (Bolya et al. 2019), in two phases, so that a video model can put something between them.

Unlike Lin et al. 2017: the top-down path is bilinear, a ReLU follows the output convolutions, and the two coarsest
maps come from strided convolutions of the third.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.layers.backbones import Backbone
from modelkit.registry import register


@register("neck", "yolact_fpn")
class YolactFPN(Backbone):
    """Maps c3 .. c5 to p3 .. p7 of one width.

    Args:
        backbone: whose maps come in; any consecutive ones, fine to coarse.
        channels: of every output map.
        num_downsample: coarser maps added by 3x3 convolutions of stride 2.
    """

    def __init__(self, backbone: Backbone, *, channels: int = 256, num_downsample: int = 2) -> None:
        super().__init__()
        incoming = {f"p{name[1:]}": width for name, width in backbone.out_channels.items()}
        self.laterals = nn.ModuleDict({name: nn.Conv2d(width, channels, 1) for name, width in incoming.items()})
        self.outputs = nn.ModuleDict({name: nn.Conv2d(channels, channels, 3, padding=1) for name in incoming})
        self.downsamples = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_downsample)
        )
        coarsest = max(int(name[1:]) for name in incoming)
        names = [*incoming, *(f"p{coarsest + k + 1}" for k in range(num_downsample))]
        self.declare(dict.fromkeys(names, channels))
        initialise(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.finish(self.merge(features)[0])

    def lateral(self, features: Mapping[str, Tensor], name: str) -> Tensor:
        """One backbone map in the pyramid's width; ``name`` is the pyramid's."""
        return self.laterals[name](features[f"c{name[1:]}"])

    def merge(self, features: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Phase 1: the sums of laterals along the top-down path, fine to coarse, and the finest lateral itself."""
        laterals = {name: self.lateral(features, name) for name in self.laterals}
        sums: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(laterals):
            above = laterals[name] if above is None else add_upsampled(above, laterals[name])
            sums[name] = above
        return {name: sums[name] for name in laterals}, next(iter(laterals.values()))

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Phase 2: output convolutions and the coarser maps."""
        maps = {name: F.relu(self.outputs[name](total)) for name, total in sums.items()}
        last = maps[list(self.laterals)[-1]]
        for name, convolution in zip(list(self.out_channels)[len(maps) :], self.downsamples, strict=True):
            last = maps[name] = convolution(last)
        return maps


def add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """One step of the top-down path."""
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False) + fine


def initialise(network: nn.Module) -> None:
    """YOLACT's initial values for whatever was not pre-trained: Xavier uniform, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
