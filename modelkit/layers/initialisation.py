"""How fresh convolutions start."""

from __future__ import annotations

from torch import nn


def kaiming_initialise(network: nn.Module) -> None:
    """Normal weights whose variance keeps that of the gradient through ReLUs (He et al. 2015, fan-out), zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
