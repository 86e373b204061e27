"""How fresh convolutions start."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kaiming_initialise(network: nn.Module) -> None:
    """Normal weights whose variance keeps that of the gradient through ReLUs (He et al. 2015, fan-out), zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) float: what a pixel gives to its surroundings when a map is enlarged bilinearly."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    row = 1 - (torch.arange(size) - centre).abs() / factor
    return row[:, None] * row
