"""Fully convolutional networks (Long et al. 2015): VGG's classifier as convolutions, finer maps add their scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.layers import Backbone
from modelkit.layers.initialisation import bilinear_kernel
from modelkit.registry import register
from modelkit.semantic.composition import SemanticHead

# Of the published nets, by their final stride. Their first convolution pads by 100 so that no input is too small for
# the 7x7 convolution; what sticks out of the image is cut off again, at offsets that follow from the chain of layers.
_PAD = 99  # and one by the convolution itself
_SKIP_CROP = {"c4": 5, "c3": 9}
_FINAL_CROP = {32: 19, 16: 27, 8: 31}
_SKIPS = {32: (), 16: ("c4",), 8: ("c4", "c3")}  # coarse to fine
_AT_ONCE = {"c4": 1e-2, "c3": 1e-4}


@register("dense_head", "fcn_head")
class FCNHead(SemanticHead):
    """Scores of the coarsest map, enlarged and summed with those of finer maps.

    Scores of the finer maps start at zero, so that a net starts as the coarser one it extends.

    Args:
        backbone: with maps c5 and, as the stride demands, c4 and c3.
        num_classes: channels of the logits.
        stride: of the finest map that is scored: 32, 16 or 8.
        modern: pad no more than each convolution needs and enlarge by bilinear interpolation; logits stay on the
            finest scored map. Otherwise as published, for VGG: pad by 100, enlarge by transposed convolutions up to the
            image, cut off the margins.
        channels: of fc6 and fc7.
        dropout: of whole channels, after each of them.
        at_once: scale the finer maps by 0.01 and 0.0001, as the net does that is trained in one go.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        stride: int = 8,
        modern: bool = True,
        channels: int = 4096,
        dropout: float = 0.5,
        at_once: bool = False,
    ) -> None:
        super().__init__()
        if stride not in _SKIPS:
            raise ConfigError(f"fcn_head stride must be 8, 16 or 32, got {stride}")
        missing = {"c5", *_SKIPS[stride]} - set(backbone.out_channels)
        if missing:
            raise ConfigError(f"fcn_head of stride {stride} needs the maps {sorted(missing)} of its backbone")
        self.stride, self.modern = stride, modern
        self.scales = {name: _AT_ONCE[name] if at_once else 1.0 for name in _SKIPS[stride]}
        self.fc = nn.Sequential(
            nn.Conv2d(backbone.out_channels["c5"], channels, 7, padding=3 if modern else 0),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )
        self.score = nn.Conv2d(channels, num_classes, 1)
        self.skip_scores = nn.ModuleDict(
            {name: nn.Conv2d(backbone.out_channels[name], num_classes, 1) for name in _SKIPS[stride]}
        )
        for each in self.skip_scores.values():
            nn.init.zeros_(each.weight)  # type: ignore[arg-type]
            nn.init.zeros_(each.bias)  # type: ignore[arg-type]
        self.enlarge = nn.ModuleDict()
        if not modern:
            self.enlarge.update({name: bilinear_deconvolution(num_classes, 2) for name in _SKIPS[stride]})
            self.enlarge["image"] = bilinear_deconvolution(num_classes, stride)

    def prepare(self, batch: Tensor) -> Tensor:
        return batch if self.modern else F.pad(batch, (_PAD,) * 4)

    def forward(self, features: dict[str, Tensor], size_hw: SizeHW) -> Tensor:
        scores = self.score(self.fc(features["c5"]))
        for name, scale in self.scales.items():
            finer = self.skip_scores[name](features[name] * scale)
            if self.modern:
                scores = F.interpolate(scores, size=finer.shape[-2:], mode="bilinear", align_corners=False) + finer
            else:
                scores = self.enlarge[name](scores)
                scores = scores + _crop(finer, _SKIP_CROP[name], (scores.shape[-2], scores.shape[-1]))
        if self.modern:
            return scores
        return _crop(self.enlarge["image"](scores), _FINAL_CROP[self.stride], size_hw)


def _crop(maps: Tensor, offset: int, size_hw: SizeHW) -> Tensor:
    return maps[..., offset : offset + size_hw[0], offset : offset + size_hw[1]]


def bilinear_deconvolution(channels: int, stride: int) -> nn.ConvTranspose2d:
    """A fixed transposed convolution of kernel 2 * stride that enlarges each channel by itself, bilinearly."""
    layer = nn.ConvTranspose2d(channels, channels, 2 * stride, stride=stride, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = bilinear_kernel(2 * stride).to(layer.weight)
    return layer.requires_grad_(False)
