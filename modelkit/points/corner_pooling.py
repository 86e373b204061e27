"""Pooling that looks for the edges of objects: a corner lies where no part of its object is (Law & Deng 2018).

Top pooling looks down: each cell becomes the largest value at or below it. Centre pooling takes the largest of the
whole column and row; cascade pooling looks along the edge first and then into the object (Duan et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.layers.mobilenet_v1 import convolution
from modelkit.layers.norms import NormLayer

Pool = Callable[[Tensor], Tensor]
_ROWS, _COLUMNS = -2, -1


def top_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest at or below each cell."""
    return bottom_pool(x.flip(_ROWS)).flip(_ROWS)


def bottom_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest at or above each cell."""
    return x.cummax(_ROWS).values


def left_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest at or to the right of each cell."""
    return right_pool(x.flip(_COLUMNS)).flip(_COLUMNS)


def right_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest at or to the left of each cell."""
    return x.cummax(_COLUMNS).values


def column_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest of each cell's column."""
    return x.amax(_ROWS, keepdim=True).expand_as(x)


def row_pool(x: Tensor) -> Tensor:
    """(..., h, w): the largest of each cell's row."""
    return x.amax(_COLUMNS, keepdim=True).expand_as(x)


POOLS: dict[str, tuple[Pool, Pool]] = {
    "top_left": (top_pool, left_pool),
    "bottom_right": (bottom_pool, right_pool),
    "center": (column_pool, row_pool),
}


class PairPooling(nn.Module):
    """Two maps, each pooled one way, added and put back into the features.

    Args:
        channels: that come in and go out.
        inner: of the pooled maps.
        pools: along columns, along rows.
        make_norm: after convolutions.
        cascade: before a map is pooled one way, another one that was pooled the other way is added to it.
    """

    def __init__(
        self, channels: int, inner: int, pools: tuple[Pool, Pool], make_norm: NormLayer, cascade: bool
    ) -> None:
        super().__init__()
        self.pools = pools
        self.maps = nn.ModuleList(convolution(channels, inner, 3, make_norm, 0.0) for _ in pools)
        ways = pools if cascade else ()
        self.looks = nn.ModuleList(convolution(channels, inner, 3, make_norm, 0.0) for _ in ways)
        self.mixes = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1, bias=False) for _ in ways)
        self.pooled = convolution(inner, channels, 3, make_norm, None)
        self.past = convolution(channels, channels, 1, make_norm, None)
        self.last = convolution(channels, channels, 3, make_norm, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        maps = [convolve(x) for convolve in self.maps]
        for k, (look, mix) in enumerate(zip(self.looks, self.mixes, strict=True)):
            maps[k] = mix(maps[k] + self.pools[1 - k](look(x)))
        total = self.pools[0](maps[0]) + self.pools[1](maps[1])
        return self.last(F.relu(self.pooled(total) + self.past(x)))
