"""VGG (Simonyan and Zisserman 2015) as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.vgg import cfgs, make_layers

from modelkit.errors import ConfigError
from modelkit.layers.backbones import TorchvisionBackbone
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.registry import register

_LAYERS = {11: "A", 13: "B", 16: "D", 19: "E"}  # depth to torchvision's letter, which is the paper's
_WIDTH = 64  # of the paper's first convolutions


@register("backbone", "vgg")
class VGGBackbone(TorchvisionBackbone):
    """torchvision's VGG without its classifier; the map of a stride is what its pooling gives.

    Args:
        depth: 11, 13, 16 or 19.
        width: channels of the first convolutions, 64 in the paper; the others follow in proportion.
        out: which maps to return, among c1 .. c5.
        batch_norm: after every convolution.
        ceil_mode: of the pools: odd sides are rounded up, as in Caffe's nets; torchvision's classifiers round down.
    """

    def __init__(
        self,
        *,
        depth: int = 16,
        width: int = _WIDTH,
        out: Sequence[str] = ("c3", "c4", "c5"),
        batch_norm: bool = False,
        ceil_mode: bool = True,
    ) -> None:
        super().__init__()
        if depth not in _LAYERS:
            raise ConfigError(f"vgg depth must be 11, 13, 16 or 19, got {depth}")
        layout = [each if isinstance(each, str) else each * width // _WIDTH for each in cfgs[_LAYERS[depth]]]
        features = make_layers(cast(list[str | int], layout), batch_norm=batch_norm)
        pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        for index in pools:
            cast(nn.MaxPool2d, features[index]).ceil_mode = ceil_mode
        place = {f"c{k + 1}": index for k, index in enumerate(pools)}
        self.body = IntermediateLayerGetter(features, {str(place[name]): name for name in out})
        widths = [before for before, after in pairwise(layout) if after == "M"]
        channels = {f"c{k + 1}": int(width) for k, width in enumerate(widths)}
        self.declare({name: channels[name] for name in out})
        kaiming_initialise(self)
