"""Networks of top-down landmark models: a backbone, then maps through deconvolutions, or coordinates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelkit.errors import ConfigError
from modelkit.layers import Backbone, norm_layer
from modelkit.layers.deformable import OffsetConv2d
from modelkit.layers.initialisation import bilinear_kernel
from modelkit.registry import Config, build, register


@register("neck", "deconvolution")
class DeconvolutionNeck(Backbone):
    """The coarsest map enlarged by deconvolutions of stride 2, each with a norm and ReLU (Xiao et al. 2018).

    Args:
        backbone: whose maps come in.
        channels: of each deconvolution; three of them make stride 4 of stride 32.
        norm: "batch" or "group".
        deformable: before each a modulated deformable convolution with norm and ReLU (Zhou et al. 2019, CenterNet);
            the deconvolutions then begin as bilinear enlargement.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        channels: Sequence[int] = (256, 256, 256),
        norm: str = "batch",
        deformable: bool = False,
    ) -> None:
        super().__init__()
        self._takes = list(backbone.out_channels)[-1]
        make_norm = norm_layer(norm)
        if make_norm is None or not channels:
            raise ConfigError(f"deconvolution needs channels and a norm, got {list(channels)} and {norm!r}")
        layers: list[nn.Module] = []
        before = backbone.out_channels[self._takes]
        for width in channels:
            if deformable:
                layers += [OffsetConv2d(before, width, modulated=True), make_norm(width), nn.ReLU()]
                before = width
            enlarge = nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False)
            if deformable:
                _enlarge_bilinearly(enlarge)
            layers += [enlarge, make_norm(width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        name = f"p{int(self._takes[1:]) - len(channels)}"
        self.out_channels = {name: before}
        self.strides = {name: backbone.strides[self._takes] // 2 ** len(channels)}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {next(iter(self.out_channels)): self.layers(features[self._takes])}


def _enlarge_bilinearly(layer: nn.ConvTranspose2d) -> None:
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        channels = range(layer.out_channels)
        layer.weight[channels, channels] = bilinear_kernel(4).to(layer.weight)


@register("dense_head", "heatmap_head")
class HeatmapHead(nn.Module):
    """A map for each point, on the finest map of the neck, by one 1x1 convolution."""

    def __init__(self, neck: Backbone, num_keypoints: int) -> None:
        super().__init__()
        self._takes = next(iter(neck.out_channels))
        self.predictor = nn.Conv2d(neck.out_channels[self._takes], num_keypoints, 1)
        nn.init.normal_(self.predictor.weight, std=1e-3)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """``heatmaps`` (N, K, h, w)."""
        return {"heatmaps": self.predictor(features[self._takes])}


@register("dense_head", "coordinate_head")
class CoordinateHead(nn.Module):
    """Two numbers for each point, from the mean of the coarsest map; at first all point to the middle."""

    def __init__(self, neck: Backbone, num_keypoints: int) -> None:
        super().__init__()
        self._takes = list(neck.out_channels)[-1]
        self.predictor = nn.Linear(neck.out_channels[self._takes], 2 * num_keypoints)
        nn.init.normal_(self.predictor.weight, std=1e-3)
        nn.init.constant_(self.predictor.bias, 0.5)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """``coordinates`` (N, K, 2) of x and y, shares of the network's width and height."""
        return {"coordinates": self.predictor(features[self._takes].mean((-2, -1))).unflatten(1, (-1, 2))}


class LandmarkNetwork(nn.Module):
    """Backbone, neck and head.

    Args:
        backbone, neck, head: part configs.
        num_keypoints: K.
    """

    def __init__(self, backbone: Config, neck: Config, head: Config, num_keypoints: int) -> None:
        super().__init__()
        self.backbone: Backbone = build("backbone", backbone)
        self.neck: Backbone = build("neck", neck, self.backbone)
        self.head: nn.Module = build("dense_head", head, self.neck, num_keypoints)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """What the head gives for (N, 3, h, w)."""
        return self.head(self.neck(self.backbone(batch)))
