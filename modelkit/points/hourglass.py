"""The hourglass that objects are found with (Law & Deng 2018, CornerNet): residual blocks, strides instead of pooling.

Not to be confused with that of Newell et al. 2016 for poses, whose blocks are bottlenecks with the activation first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.layers.mobilenet_v1 import convolution
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.registry import register


@register("backbone", "object_hourglass")
class ObjectHourglassBackbone(Backbone):
    """A stem of stride 4 and a row of hourglasses, each of which sees what the one before it saw and found.

    The last one's map is ``c2``; those before it are ``c2_stack0``, ``c2_stack1``, ..., for losses of their own.

    Args:
        stacks: how many hourglasses.
        widths: channels of each depth of an hourglass; one more than it has halvings.
        depths: residual blocks on each way at that depth.
        stem_width: channels of the 7x7 convolution.
        channels: of the maps that come out.
        norm: "batch", "frozen_batch" or "group".
    """

    def __init__(
        self,
        *,
        stacks: int = 2,
        widths: Sequence[int] = (256, 256, 384, 384, 384, 512),
        depths: Sequence[int] = (2, 2, 2, 2, 2, 4),
        stem_width: int = 128,
        channels: int = 256,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        if make_norm is None or stacks < 1 or len(widths) != len(depths) or len(widths) < 2:
            raise ConfigError(
                "object_hourglass needs a norm, at least one stack, and as many depths as widths, two or more; got "
                f"{norm!r}, {stacks}, {list(widths)} and {list(depths)}"
            )
        stem = convolution(3, stem_width, 7, make_norm, 0.0, stride=2)
        self.stem = nn.Sequential(stem, residual(stem_width, widths[0], make_norm, stride=2))
        self.hourglasses = nn.ModuleList(_Hourglass(widths, depths, make_norm) for _ in range(stacks))
        self.outputs = nn.ModuleList(convolution(widths[0], channels, 3, make_norm, 0.0) for _ in range(stacks))
        self.between = nn.ModuleList(_Between(widths[0], channels, make_norm) for _ in range(stacks - 1))
        self.declare({"c2": channels})
        self.stacks = stacks

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, features = self.stem(images), {}
        for k, (hourglass, output) in enumerate(zip(self.hourglasses, self.outputs, strict=True)):
            found = output(hourglass(x))
            if k == self.stacks - 1:
                features["c2"] = found
            else:
                features[f"c2_stack{k}"] = found
                x = self.between[k](x, found)
        return features


class _Hourglass(nn.Module):
    """Half the size and back, with a way past it; inside of it the same again, until the last width."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], make_norm: NormLayer) -> None:
        super().__init__()
        outer, inner, depth = widths[0], widths[1], depths[0]
        deepest = len(widths) == 2
        self.past = _row([outer] * (depth + 1), make_norm)
        self.down = _row([outer] + [inner] * depth, make_norm, stride=2)
        self.inside = (
            _row([inner] * (depths[1] + 1), make_norm) if deepest else _Hourglass(widths[1:], depths[1:], make_norm)
        )
        self.up = _row([inner] * depth + [outer], make_norm)

    def forward(self, x: Tensor) -> Tensor:
        past = self.past(x)
        return past + F.interpolate(self.up(self.inside(self.down(x))), size=past.shape[-2:], mode="nearest")


class _Between(nn.Module):
    """What goes into the next hourglass: what went into the last one and what it found."""

    def __init__(self, width: int, channels: int, make_norm: NormLayer) -> None:
        super().__init__()
        self.seen = convolution(width, width, 1, make_norm, None)
        self.found = convolution(channels, width, 1, make_norm, None)
        self.block = residual(width, width, make_norm)

    def forward(self, seen: Tensor, found: Tensor) -> Tensor:
        return self.block(F.relu(self.seen(seen) + self.found(found)))


def residual(channels: int, width: int, make_norm: NormLayer, *, stride: int = 1) -> BasicBlock:
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""
    changes = stride != 1 or channels != width
    skip = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), make_norm(width)) if changes else None
    return BasicBlock(channels, width, stride, skip, norm_layer=make_norm)


def _row(widths: Sequence[int], make_norm: NormLayer, *, stride: int = 1) -> nn.Sequential:
    """Residual blocks from width to width; the first one has the stride."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(residual(a, b, make_norm, stride=stride if k == 0 else 1) for k, (a, b) in enumerate(pairs)))
