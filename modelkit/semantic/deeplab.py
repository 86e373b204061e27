"""DeepLabV3+ (Chen et al. 2018): atrous spatial pyramid pooling, refined by one finer map of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.layers import Backbone, kaiming_initialise
from modelkit.registry import register
from modelkit.semantic.composition import SemanticHead

_RATES = (6, 12, 18)  # at output stride 16; a map of stride 8 needs twice as much to see as far


@register("dense_head", "deeplabv3plus_head")
class DeepLabV3PlusHead(SemanticHead):
    """torchvision's ASPP on the coarsest map, enlarged onto a finer one, both convolved together.

    The image-pooling branch normalises one value per channel and image, so training needs batches of two or more.

    Args:
        backbone: its coarsest map has the output stride, 16 or 8 with ``dilate_last`` of the usual backbones.
        num_classes: channels of the logits, which lie on the finer map's grid.
        low: name of the finer map.
        low_channels: it is reduced to.
        channels: of everything else.
        rates: dilations of the three atrous branches; None: 6, 12, 18 at stride 16, more at finer strides.
        decoder_convs: 3x3 convolutions before the scores: 2 as in the paper, 1 as in VainF's weights.
        separable: 3x3 convolutions are a depthwise and a pointwise one.
        dropout: after the ASPP.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        low: str = "c2",
        low_channels: int = 48,
        channels: int = 256,
        rates: Sequence[int] | None = None,
        decoder_convs: int = 1,
        separable: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if decoder_convs not in (1, 2) or low not in backbone.out_channels:
            raise ConfigError(
                f"deeplabv3plus_head needs decoder_convs 1 or 2 and low among {list(backbone.out_channels)}, got "
                f"{decoder_convs} and {low!r}"
            )
        self.low, self.high = low, list(backbone.out_channels)[-1]
        rates = rates or [max(1, rate * 16 // backbone.strides[self.high]) for rate in _RATES]
        self.aspp = ASPP(backbone.out_channels[self.high], rates, channels)
        cast(nn.Dropout, self.aspp.project[-1]).p = dropout
        self.project = nn.Sequential(*_convolution(backbone.out_channels[low], low_channels, 1))
        widths = [low_channels + channels] + [channels] * decoder_convs
        layers = [layer for before in widths[:-1] for layer in _convolution(before, channels, 3)]
        self.decoder = nn.Sequential(*layers)
        if separable:
            _separate(self)
        kaiming_initialise(self)
        self.decoder.append(nn.Conv2d(channels, num_classes, 1))

    def forward(self, features: dict[str, Tensor], size_hw: SizeHW) -> Tensor:
        low = self.project(features[self.low])
        high = self.aspp(features[self.high])
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.decoder(torch.cat([low, high], 1))


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _separate(module: nn.Module) -> None:
    """Replace every 3x3 convolution below a module by a depthwise and a pointwise one, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size[0] > 1:
            inputs, outputs = child.in_channels, child.out_channels
            reach = child.dilation[0]  # zeros around keep the size
            depthwise = nn.Conv2d(inputs, inputs, 3, padding=reach, dilation=reach, groups=inputs, bias=False)
            module.add_module(name, nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False)))
        else:
            _separate(child)
