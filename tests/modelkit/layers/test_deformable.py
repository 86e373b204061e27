"""Deformable convolutions: zero offsets, whole offsets, and sampling against torchvision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from modelkit.layers.deformable import OffsetConv2d, deform_conv2d_by_sampling


def test_offsets_start_at_zero_and_then_it_is_the_ordinary_convolution() -> None:
    torch.manual_seed(0)
    layer = OffsetConv2d(6, 4)
    x = torch.randn(2, 6, 9, 11)
    expected = F.conv2d(x, layer.deform.weight, layer.deform.bias, padding=1)
    assert (layer(x) - expected).abs().max() <= 1e-5
    layer.offset.bias.data[1::2] = 1.0  # type: ignore[union-attr]  # every sample one pixel to the right
    assert (layer(x)[..., :-2] - expected[..., 1:-1]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("kernel", "padding", "size"), [(3, 1, (9, 11)), (3, 0, (7, 5)), (1, 0, (4, 4)), (3, 1, (2, 1))]
)
def test_sampling_gives_torchvisions_values_and_gradients(kernel: int, padding: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shrink = 2 * padding - kernel + 1
    shapes = [
        (2, 5, *size),
        (2, 2 * kernel * kernel, size[0] + shrink, size[1] + shrink),
        (3, 5, kernel, kernel),
        (3,),
    ]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, offset, weight, bias = given
    expected = deform_conv2d(x, offset, weight, bias, padding=padding)
    actual = deform_conv2d_by_sampling(x, offset, weight, bias, padding)
    assert (actual - expected).abs().max() < 1e-9
    pull = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * pull).sum(), given)
    found = torch.autograd.grad((actual * pull).sum(), given)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(found, wanted, strict=True))
