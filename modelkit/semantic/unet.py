"""U-Net (Ronneberger et al. 2015): an encoder that halves, a decoder that doubles and sees every encoder map again.

Padding "same" is how it is used today: every map keeps its size. "valid" is the paper's: convolutions eat a margin, so
the image is mirrored around its border first, as the paper does at the border of its tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.layers import Backbone, kaiming_initialise, norm_layer
from modelkit.registry import register
from modelkit.semantic.composition import SemanticHead

Padding = Literal["same", "valid"]


@register("backbone", "unet_encoder")
class UNetEncoder(Backbone):
    """Two 3x3 convolutions on each level, 2x2 maximum pools between them; maps c0 (the image's size), c1, ...

    Args:
        widths: channels of the levels, at least two.
        norm: after each convolution; None (with a bias instead) as in the paper.
        padding: "same" or "valid", see the module.
        dropout: at the end of the contracting path.
        in_channels: 3, or 1: the mean of the colours, for grey images.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: str | None = "batch",
        padding: Padding = "same",
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or padding not in ("same", "valid") or in_channels not in (1, 3):
            raise ConfigError(
                "unet_encoder needs two or more widths, padding 'same' or 'valid' and in_channels 1 or 3, got "
                f"{widths}, {padding!r} and {in_channels}"
            )
        self.padding, self.in_channels = padding, in_channels
        steps = pairwise((in_channels, *widths))
        self.levels = nn.ModuleList(double_convolution(i, o, o, norm, padding) for i, o in steps)
        self.dropout = nn.Dropout(dropout)
        self.declare({f"c{k}": width for k, width in enumerate(widths)})
        kaiming_initialise(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images.mean(1, keepdim=True) if self.in_channels == 1 else images
        features: dict[str, Tensor] = {}
        for name, level in zip(self.out_channels, self.levels, strict=True):
            x = features[name] = level(F.max_pool2d(x, 2) if features else x)
        features[name] = self.dropout(x)
        return features


@register("dense_head", "unet_decoder")
class UNetDecoder(SemanticHead):
    """From the coarsest map up: enlarge, put the encoder's map of that level beside it, two 3x3 convolutions.

    Where pooling rounded down, the enlarged map is padded with zeros to the size of the encoder's.

    Args:
        backbone: its maps, fine to coarse, are the levels. Only of "valid" encoders are maps cut.
        num_classes: channels of the logits, which lie on the finest map's grid.
        bilinear: enlarge by interpolation instead of a transposed convolution.
        norm: after each convolution; None (with a bias instead) as in the paper.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, *, bilinear: bool = False, norm: str | None = "batch"
    ) -> None:
        super().__init__()
        self.padding: Padding = getattr(backbone, "padding", "same")
        self.names = tuple(reversed(backbone.out_channels))[1:]
        widths = list(backbone.out_channels.values())
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for level in range(len(widths) - 2, -1, -1):
            skip = widths[level]
            raised, wanted = (below, widths[max(level - 1, 0)]) if bilinear else (skip, skip)
            # Corners are aligned because published weights were trained so.
            enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.ups.append(enlarge if bilinear else nn.ConvTranspose2d(below, raised, 2, stride=2))
            middle = (raised + skip) // 2 if bilinear else wanted
            self.blocks.append(double_convolution(raised + skip, middle, wanted, norm, self.padding))
            below = wanted
        kaiming_initialise(self)
        self.score = nn.Conv2d(below, num_classes, 1)

    def prepare(self, batch: Tensor) -> Tensor:
        if self.padding == "same":
            return batch
        rows, columns = (self._margins(side) for side in batch.shape[-2:])
        return mirror(batch, rows, columns)

    def forward(self, features: dict[str, Tensor], size_hw: SizeHW) -> Tensor:
        x = list(features.values())[-1]
        for name, up, block in zip(self.names, self.ups, self.blocks, strict=True):
            skip, x = features[name], up(x)
            if self.padding == "valid":
                skip = _centre(skip, (x.shape[-2], x.shape[-1]))
            else:
                x = _pad_to(x, (skip.shape[-2], skip.shape[-1]))
            x = block(torch.cat([skip, x], 1))
        logits = self.score(x)
        return logits if self.padding == "same" else _centre(logits, size_hw)

    def _margins(self, side: int) -> tuple[int, int]:
        """How many cells to mirror before and after a side, so that the logits cover it and no pool has a remainder."""
        levels = len(self.names)
        coarsest = 1
        while self._valid_output(coarsest) < side:
            coarsest += 1
        missing = _valid_input(coarsest, levels) - side
        # The logits are centred, and odd remainders are cut the way ``_centre`` cuts them.
        lost = _valid_input(coarsest, levels) - self._valid_output(coarsest)
        before = lost // 2 + (self._valid_output(coarsest) - side) // 2
        return before, missing - before

    def _valid_output(self, coarsest: int) -> int:
        """Side of the logits that a coarsest map of that side gives."""
        for _ in self.names:
            coarsest = 2 * coarsest - 4
        return coarsest


def _valid_input(coarsest: int, levels: int) -> int:
    """Side of the image that gives a coarsest map of that side: each level eats 4, each pool halves."""
    side = coarsest + 4
    for _ in range(levels):
        side = 2 * side + 4
    return side


def double_convolution(inputs: int, middle: int, outputs: int, norm: str | None, padding: Padding) -> nn.Sequential:
    """Twice: 3x3 convolution, normalisation if any, ReLU."""
    make_norm = norm_layer(norm)
    layers: list[nn.Module] = []
    for before, after in ((inputs, middle), (middle, outputs)):
        layers.append(nn.Conv2d(before, after, 3, padding=1 if padding == "same" else 0, bias=make_norm is None))
        layers += [make_norm(after)] if make_norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def mirror(images: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) mirrored around their border, as often as needed; the outermost pixel is not repeated.

    Args:
        rows: how many before and after.
        columns: likewise.
    """
    height, width = images.shape[-2:]
    down, across = _mirrored(height, rows, images.device), _mirrored(width, columns, images.device)
    return images.index_select(-2, down).index_select(-1, across)


def _mirrored(side: int, margins: tuple[int, int], device: torch.device) -> Tensor:
    period = max(1, 2 * (side - 1))
    phase = torch.arange(-margins[0], side + margins[1], device=device) % period
    return torch.minimum(phase, period - phase)


def _centre(maps: Tensor, size_hw: SizeHW) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(maps.shape[-2:], size_hw, strict=True))
    return maps[..., top : top + size_hw[0], left : left + size_hw[1]]


def _pad_to(maps: Tensor, size_hw: SizeHW) -> Tensor:
    down, across = (want - have for have, want in zip(maps.shape[-2:], size_hw, strict=True))
    if not down and not across:
        return maps
    return F.pad(maps, (across // 2, across - across // 2, down // 2, down - down // 2))
