"""Losses of semantic segmentation, and which of them a model uses, as config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers.targets import IGNORE
from modelkit.errors import ConfigError
from modelkit.layers.stretching import stretch

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class LossConfig:
    """What a segmentor learns from.

    Args:
        reduction: of the cross-entropy: "mean" over labelled pixels, or "sum" (Long et al. 2015, with rates to match).
        background: weight of the pixels of the background, where a model has one, in the cross-entropy. Where it covers
            most of the pixels, other classes are learnt late without this.
        dice: weight of ``dice_loss`` beside it; 0 = none.
        border: weight of ``border_weights`` in the cross-entropy; 0 = none. Targets then need ``masks``.
        border_sigma: how far it reaches, pixels.
    """

    reduction: Literal["mean", "sum"] = "mean"
    background: float = 1.0
    dice: float = 0.0
    border: float = 0.0
    border_sigma: float = 5.0

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum") or min(self.dice, self.border) < 0 or self.border_sigma <= 0:
            raise ConfigError(
                "losses need reduction 'mean' or 'sum', dice and border >= 0 and border_sigma > 0, got "
                f"{self.reduction!r}, {self.dice}, {self.border} and {self.border_sigma}"
            )
        if self.background <= 0:
            raise ConfigError(f"losses need background > 0, got {self.background}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LossConfig:
        """From plain JSON; raises ConfigError naming unknown keys."""
        unknown = sorted(set(config) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"losses have no option {', '.join(unknown)}")
        return cls(**config)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON with every option."""
        return asdict(self)


def pixel_loss(
    logits: Tensor, wanted: Tensor, weights: Tensor | None = None, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy of logits (N, C, h, w), stretched to the targets (N, H, W); zero when all is ignored.

    Args:
        weights: (N, H, W) of the pixels, or None. A weighted sum is still divided by the number of labelled pixels.
        reduction: "mean" over labelled pixels, or "sum".
    """
    per_pixel = F.cross_entropy(
        stretch(logits.float(), wanted.shape[-2:]), wanted, ignore_index=IGNORE, reduction="none"
    )
    total = (per_pixel if weights is None else per_pixel * weights).sum()
    return total if reduction == "sum" else total / (wanted != IGNORE).sum().clamp(min=1)


def dice_loss(probabilities: Tensor, wanted: Tensor, first_class: int = 0) -> Tensor:
    """1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e) over labelled pixels and classes of a batch (Milletari et al. 2016).

    Args:
        probabilities: (N, C, H, W).
        wanted: (N, H, W) class ids, 255 is ignored.
        first_class: classes below it are left out; 1 judges the foreground alone.
    """
    labelled = wanted != IGNORE
    truth = F.one_hot(wanted.where(labelled, 0), probabilities.shape[1]).movedim(-1, 1)
    truth = (truth * labelled[:, None])[:, first_class:]
    guess = (probabilities * labelled[:, None])[:, first_class:]
    return 1 - (2 * (guess * truth).sum() + _EPSILON) / (guess.sum() + truth.sum() + _EPSILON)


def border_weights(nearest: Tensor, second: Tensor, strength: float = 10.0, sigma: float = 5.0) -> Tensor:
    """What a pixel counts beside 1: strength * exp(-(d1 + d2)^2 / (2 sigma^2)) (Ronneberger et al. 2015, eq. 2).

    Args:
        nearest: distance to the nearest object, pixels.
        second: distance to the second nearest.
    """
    return strength * torch.exp(-((nearest + second) ** 2) / (2 * sigma**2))


def border_weight_map(masks: Tensor, strength: float = 10.0, sigma: float = 5.0) -> Tensor:
    """(H, W) float: 1 everywhere, more on the gaps between objects that nearly touch; objects themselves stay at 1.

    Args:
        masks: (n, H, W); with fewer than two objects there is no gap.
    """
    if len(masks) < 2:
        return torch.ones(masks.shape[1:], device=masks.device)
    outside = masks.numpy(force=True) == 0
    # An object that is not to be seen is infinitely far away; scipy would call it an edge of the picture.
    far = np.full(outside.shape[1:], np.inf, np.float32)
    away = np.stack([far if each.all() else distance_transform_edt(each).astype(np.float32) for each in outside])
    nearest, second = torch.from_numpy(np.partition(away, 1, axis=0)[:2]).to(masks.device)
    return 1 + border_weights(nearest, second, strength, sigma) * (nearest > 0)
