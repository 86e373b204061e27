"""DarkNet-53, the backbone of YOLOv3 (Redmon and Farhadi 2018): residual blocks of a 1x1 and a 3x3 convolution."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.norms import norm_layer
from modelkit.registry import register

_LEAKY = functools.partial(nn.LeakyReLU, 0.1)


class _Block(nn.Module):
    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, channels // 2, 1, 1, norm)
        self.conv2 = _convolution(channels // 2, channels, 3, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


def _convolution(channels: int, width: int, kernel: int, stride: int, norm: str) -> nn.Sequential:
    return Conv2dNormActivation(
        channels, width, kernel, stride, norm_layer=norm_layer(norm), activation_layer=_LEAKY, bias=False
    )


@register("backbone", "darknet53")
class DarkNetBackbone(Backbone):
    """Stem at full resolution, then five stages, each of which halves the sides and doubles the channels.

    Args:
        width: channels of the stem.
        depths: residual blocks of the stages c1 .. c5.
        out: which maps to return, among c1 .. c5.
        norm: "batch", "frozen_batch" or "group".
    """

    def __init__(
        self,
        *,
        width: int = 32,
        depths: Sequence[int] = (1, 2, 8, 8, 4),
        out: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        names = [f"c{k + 1}" for k in range(len(depths))]
        if not set(out) <= set(names) or width < 1 or not depths:
            raise ConfigError(f"darknet53 has the maps {names}, asked for {list(out)}; width {width}")
        self.stem = _convolution(3, width, 3, 1, norm)
        self.stages = nn.ModuleDict()
        for k, (name, depth) in enumerate(zip(names, depths, strict=True)):
            channels = width * 2 ** (k + 1)
            shrink = _convolution(channels // 2, channels, 3, 2, norm)
            self.stages[name] = nn.Sequential(shrink, *(_Block(channels, norm) for _ in range(depth)))
        self.declare({name: width * 2 ** int(name[1:]) for name in names if name in out})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, 0.1, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.until(images, next(reversed(self.out_channels)))

    def steps(self) -> Iterator[tuple[nn.Module, str | None]]:
        yield self.stem, None
        for name, stage in self.stages.items():
            yield stage, name if name in self.out_channels else None
