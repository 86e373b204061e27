"""Necks: backbone maps ``c*`` to pyramid maps ``p*`` of one width; same attributes as a backbone."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.norms import norm_layer
from modelkit.registry import register


@register("neck", "fpn")
class FPN(Backbone):
    """torchvision's FeaturePyramidNetwork under our names (Lin et al. 2017): nearest top-down path.

    Args:
        backbone: whose maps come in; names ``c2`` become ``p2`` and so on.
        channels: of every output map.
        extra: "pool" adds one coarser map (every second cell of the last), "p6p7" two strided convolutions, None none.
        norm: after each convolution; None (with a bias instead) as in the paper.
    """

    def __init__(
        self, backbone: Backbone, *, channels: int = 256, extra: str | None = "pool", norm: str | None = None
    ) -> None:
        super().__init__()
        blocks = {"pool": LastLevelMaxPool, "p6p7": lambda: LastLevelP6P7(channels, channels), None: lambda: None}
        if extra not in blocks:
            raise ConfigError(f"fpn extra must be 'pool', 'p6p7' or None, got {extra!r}")
        self.pyramid = FeaturePyramidNetwork(
            list(backbone.out_channels.values()), channels, blocks[extra](), norm_layer=norm_layer(norm)
        )
        names = [f"p{name[1:]}" for name in backbone.out_channels]
        coarsest = int(names[-1][1:])
        self._lateral_names = tuple(names)
        names += [f"p{coarsest + k + 1}" for k in range({"pool": 1, "p6p7": 2, None: 0}[extra])]
        self.declare(dict.fromkeys(names, channels))
        strides = list(backbone.strides.values())
        strides += [strides[-1] * 2 ** (k + 1) for k in range(len(names) - len(strides))]
        self.strides = dict(zip(names, strides, strict=True))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.pyramid(dict(zip(self._lateral_names, features.values(), strict=True)))
        return dict(zip(self.out_channels, maps.values(), strict=True))


@register("neck", "none")
class PassThrough(Backbone):
    """No neck: the backbone's maps as they are, under their ``p*`` names; for models with a single map."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.declare({f"p{name[1:]}": channels for name, channels in backbone.out_channels.items()})
        self.strides = {f"p{name[1:]}": stride for name, stride in backbone.strides.items()}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"p{name[1:]}": feature for name, feature in features.items()}
