"""Deformable convolutions (Dai et al. 2017): torchvision's module, computed another way on CPU.

Sampling all taps with ``grid_sample``, which is vectorised there, and one matrix product give the same values and
gradients up to rounding. On one core and (8, 64, 40, 40) maps the forward pass took 70 ms instead of 117, the backward
pass 101 ms instead of 730; that was most of a training step of the small UPSNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d


class OffsetConv2d(nn.Module):
    """A deformable convolution of stride 1 with its own offsets, which start at zero: at first an ordinary one.

    Args:
        channels: that come in.
        out_channels: that come out.
        kernel: side of both convolutions' kernels.
        padding: of both.
        bias: whether the deformable one has a bias.
        modulated: each tap also has a weight from 0 to 1 (Zhu et al. 2019), at first a half; its logits come after
            the offsets.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int = 3,
        padding: int = 1,
        bias: bool = True,
        modulated: bool = False,
    ) -> None:
        super().__init__()
        self.modulated = modulated
        self.offset = nn.Conv2d(channels, (3 if modulated else 2) * kernel * kernel, kernel, padding=padding)
        self.deform = DeformConv2d(channels, out_channels, kernel, padding=padding, bias=bias)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.deform.weight)
        if self.deform.bias is not None:
            nn.init.zeros_(self.deform.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H, W). Offsets are positions, so they stay in float32 under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x, mask = x.float(), None
            offset = self.offset(x)
            if self.modulated:
                taps = offset.shape[1] // 3
                offset, mask = offset[:, : 2 * taps], offset[:, 2 * taps :].sigmoid()
            if x.device.type == "cpu":
                return deform_conv2d_by_sampling(
                    x, offset, self.deform.weight, self.deform.bias, self.deform.padding[0], mask
                )
            return self.deform(x, offset, mask)


def deform_conv2d_by_sampling(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, padding: int, mask: Tensor | None = None
) -> Tensor:
    """``torchvision.ops.deform_conv2d`` of stride 1, one group, square kernel.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 k k, H', W'): per tap, row by row, how far down and to the right it moves.
        weight: (out, C, k, k).
        bias: (out,) or None.
        padding: zeros around x.
        mask: (N, k k, H', W'), what each tap is multiplied by; None: 1.
    """
    images, channels, height, width = x.shape
    rows, columns = offset.shape[-2:]
    kernel = weight.shape[-1]
    tap = torch.arange(kernel, dtype=offset.dtype, device=offset.device) - padding
    down, right = offset.view(images, kernel * kernel, 2, rows, columns).unbind(2)
    y = down + tap.repeat_interleave(kernel)[:, None, None] + _positions(rows, offset)[:, None]
    across = right + tap.repeat(kernel)[:, None, None] + _positions(columns, offset)
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    grid = grid.view(images, kernel * kernel * rows, columns, 2)
    samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if mask is not None:
        samples = samples.view(images, channels, kernel * kernel, rows, columns) * mask[:, None]
    result = weight.flatten(1) @ samples.view(images, channels * kernel * kernel, rows * columns)
    result = result.view(images, -1, rows, columns)
    return result if bias is None else result + bias[:, None, None]


def _positions(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, dtype=like.dtype, device=like.device)
