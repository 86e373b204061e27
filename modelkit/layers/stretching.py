"""Maps at another size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def stretch(maps: Tensor, size_hw: Sequence[int]) -> Tensor:
    """(N, C, h, w) float to (N, C, *size_hw), bilinear between cell centres; maps of that size stay as they are."""
    if maps.shape[-2:] == tuple(size_hw):
        return maps
    return F.interpolate(maps, size=tuple(size_hw), mode="bilinear", align_corners=False)
