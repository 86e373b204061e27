"""MobileNetV2 (Sandler et al. 2018) as a backbone, dilated where a finer map is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter

from modelkit.errors import ConfigError
from modelkit.layers.backbones import TorchvisionBackbone
from modelkit.layers.norms import norm_layer
from modelkit.registry import register


@register("backbone", "mobilenet_v2")
class MobileNetV2Backbone(TorchvisionBackbone):
    """torchvision's MobileNetV2 without its last 1x1 convolution; each map is the deepest one of its stride.

    Args:
        width: multiplier of all channels.
        out: which maps to return, among c1 .. c5.
        norm: "batch", "frozen_batch" or "group".
        dilate_last: replace the last n strides (0, 1 or 2) by dilation; their maps keep the finer stride.
        padding: where zeros are put around a map. "depthwise": before each 3x3 convolution. "block": before each whole
            block, whose expansion turns zeros into something else, and nowhere in the stem; weights of VainF's
            DeepLab were trained so. A side may then have one cell less than the backbone contract says.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        out: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "batch",
        dilate_last: int = 0,
        padding: Literal["depthwise", "block"] = "depthwise",
    ) -> None:
        super().__init__()
        if dilate_last not in (0, 1, 2) or padding not in ("depthwise", "block"):
            raise ConfigError(
                f"mobilenet_v2 needs dilate_last 0, 1 or 2 and padding 'depthwise' or 'block', got {dilate_last} and "
                f"{padding!r}"
            )
        network = torchvision.models.mobilenet_v2(weights=None, width_mult=width, norm_layer=norm_layer(norm))
        features = network.features[:-1]
        if width == 1.0 and norm != "group" and padding == "depthwise":
            self.published, self.published_part = "mobilenet_v2", "features."
        strided = [index for index, layer in enumerate(features) if _depthwise(layer).stride[0] == 2]
        last_of_stride = [following - 1 for following in strided[1:]] + [len(features) - 1]
        channels = [cast(int, features[index].out_channels) for index in last_of_stride]
        _dilate(features, strided[len(strided) - dilate_last :])
        if padding == "block":
            _depthwise(features[0]).padding = (0, 0)
            features = nn.Sequential(features[0], *(_PaddedBlock(block) for block in features[1:]))
        place = {f"c{k + 1}": index for k, index in enumerate(last_of_stride)}
        self.body = IntermediateLayerGetter(features, {str(place[name]): name for name in out})
        self.declare({name: channels[int(name[1:]) - 1] for name in out})
        coarsest = 32 // 2**dilate_last
        self.strides = {name: min(stride, coarsest) for name, stride in self.strides.items()}


def _depthwise(layer: nn.Module) -> nn.Conv2d:
    """The 3x3 convolution of the stem or of an inverted residual block."""
    block = cast(nn.Sequential, layer) if isinstance(layer, nn.Sequential) else cast(nn.Sequential, layer.conv)[-3]
    return cast(nn.Conv2d, cast(nn.Sequential, block)[0])


def _dilate(features: nn.Sequential, strided: Sequence[int]) -> None:
    """Take the stride out of some blocks; what follows is dilated so that it sees as far as before (Chen et al. 2017).

    The block itself keeps the dilation so far, as in torchvision's ResNet.
    """
    dilation = 1
    for index in range(min(strided, default=len(features)), len(features)):
        convolution = _depthwise(features[index])
        convolution.dilation = convolution.padding = (dilation, dilation)
        if index in strided:
            convolution.stride = (1, 1)
            dilation *= 2


class _PaddedBlock(nn.Module):
    """An inverted residual block that is padded as a whole; tensors keep their names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv = cast(nn.Sequential, block.conv)
        self.is_residual = bool(block.use_res_connect)
        convolution = _depthwise(block)
        self.margin = convolution.dilation[0]
        convolution.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (self.margin,) * 4))
        return x + y if self.is_residual else y
