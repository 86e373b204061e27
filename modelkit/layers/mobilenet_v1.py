"""MobileNetV1 (Howard et al. 2017) as a backbone, narrow by default."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.registry import register

# Widths of the whole network by stride; the first block of each group but that of the stem halves the map.
_GROUPS = {"c2": (128, 128), "c3": (256, 256), "c4": (512,) * 6, "c5": (1024, 1024)}


@register("backbone", "mobilenet_v1")
class MobileNetV1Backbone(Backbone):
    """A strided convolution and blocks of a depthwise and a pointwise one, each with norm and leaky ReLU.

    Args:
        width: multiplier of all channels.
        out: which maps to return, among c2 .. c5.
        norm: "batch", "frozen_batch" or "group".
        negative_slope: of the ReLUs; RetinaFace's backbone has 0.1, the paper's 0.
    """

    def __init__(
        self,
        *,
        width: float = 0.25,
        out: Sequence[str] = ("c3", "c4", "c5"),
        norm: str = "batch",
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        if make_norm is None or set(out) - set(_GROUPS):
            raise ConfigError(f"mobilenet_v1 needs a norm and maps among {list(_GROUPS)}, got {norm!r} and {list(out)}")
        channels, second = (max(1, round(each * width)) for each in (32, 64))
        stem = convolution(3, channels, 3, make_norm, negative_slope, stride=2)
        self.stem = nn.Sequential(stem, _block(channels, second, 1, make_norm, negative_slope))
        self.stages, channels = nn.ModuleDict(), second
        for name, widths in _GROUPS.items():
            blocks = []
            for k, wanted in enumerate(max(1, round(each * width)) for each in widths):
                blocks.append(_block(channels, wanted, 2 if k == 0 else 1, make_norm, negative_slope))
                channels = wanted
            self.stages[name] = nn.Sequential(*blocks)
        self.out = tuple(out)
        self.declare({name: max(1, round(_GROUPS[name][-1] * width)) for name in _GROUPS if name in self.out})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, features = self.stem(images), {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.out:
                features[name] = x
        return features


def convolution(
    channels: int,
    width: int,
    kernel: int,
    make_norm: NormLayer,
    negative_slope: float | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution without bias, norm, and a leaky ReLU unless ``negative_slope`` is None."""
    layers = [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        make_norm(width),
    ]
    if negative_slope is not None:
        layers.append(nn.LeakyReLU(negative_slope, inplace=True))
    return nn.Sequential(*layers)


def _block(channels: int, width: int, stride: int, make_norm: NormLayer, negative_slope: float) -> nn.Sequential:
    depthwise = convolution(channels, channels, 3, make_norm, negative_slope, stride=stride, groups=channels)
    return nn.Sequential(*depthwise, *convolution(channels, width, 1, make_norm, negative_slope))
