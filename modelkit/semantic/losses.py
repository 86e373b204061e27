"""Losses of semantic segmentation, and which of them a model uses, as config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_IMPOSSIBLE = -1e4  # a logit of which the exponential is 0, and no gradient NaN
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
        dice_by_class: take ``dice_loss`` of each class that a batch holds, and their mean; over all pixels at once the
            frequent classes are all that is seen of it.
        class_weights: factor on the cross-entropy of the pixels of each class id, from 0 on; empty = all 1.
        focal: exponent g of the factor (1 - p)^g on the cross-entropy, p the probability of the pixel's class (Lin et
            al. 2017); 0 = none.
        hardest: share of the labelled pixels of a batch that count, those of the largest loss (OHEM, Shrivastava et al.
            2016); 1 = all.
        lovasz: weight of ``lovasz_softmax`` beside the cross-entropy; 0 = none.
    """

    reduction: Literal["mean", "sum"] = "mean"
    background: float = 1.0
    dice: float = 0.0
    border: float = 0.0
    border_sigma: float = 5.0
    dice_by_class: bool = False
    class_weights: Sequence[float] = ()
    focal: float = 0.0
    hardest: float = 1.0
    lovasz: float = 0.0

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum") or min(self.dice, self.border) < 0 or self.border_sigma <= 0:
            raise ConfigError(
                "losses need reduction 'mean' or 'sum', dice and border >= 0 and border_sigma > 0, got "
                f"{self.reduction!r}, {self.dice}, {self.border} and {self.border_sigma}"
            )
        if self.background <= 0 or self.lovasz < 0:
            raise ConfigError(f"losses need background > 0 and lovasz >= 0, got {self.background} and {self.lovasz}")
        if self.focal < 0 or not 0 < self.hardest <= 1 or any(weight < 0 for weight in self.class_weights):
            raise ConfigError(
                f"losses need focal >= 0, 0 < hardest <= 1 and class_weights >= 0, got {self.focal}, {self.hardest} "
                f"and {list(self.class_weights)}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LossConfig:
        """From plain JSON; raises ConfigError naming unknown keys."""
        unknown = sorted(set(config) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"losses have no option {', '.join(unknown)}")
        return cls(**config)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON; options that older records do not know only where they are used."""
        young = {"dice_by_class": False, "class_weights": [], "focal": 0.0, "hardest": 1.0, "lovasz": 0.0}
        config = asdict(self) | {"class_weights": list(self.class_weights)}
        return {key: value for key, value in config.items() if key not in young or value != young[key]}


def pixel_loss(
    logits: Tensor, wanted: Tensor, weights: Tensor | None = None, config: LossConfig | None = None
) -> Tensor:
    """Cross-entropy of logits (N, C, h, w), stretched to the targets (N, H, W); zero when all is ignored.

    Args:
        weights: (N, H, W) of the pixels, or None. A weighted sum is still divided by the number of labelled pixels.
        config: reduction, class weights, focal exponent and share of hardest pixels; default: a plain mean.
    """
    config = config or LossConfig()
    per_pixel = F.cross_entropy(
        stretch(logits.float(), wanted.shape[-2:]), wanted, ignore_index=IGNORE, reduction="none"
    )
    if config.focal:
        per_pixel = (1 - (-per_pixel).exp()) ** config.focal * per_pixel
    weights = class_weight_map(weights, wanted, config.class_weights)
    per_pixel = per_pixel if weights is None else per_pixel * weights
    count = (wanted != IGNORE).sum()
    if config.hardest < 1:
        per_pixel, count = _hardest(per_pixel, max(1, int(count * config.hardest)))
    return per_pixel.sum() if config.reduction == "sum" else per_pixel.sum() / count.clamp(min=1)


def without_abstaining(
    logits: Tensor, wanted: Tensor, abstaining: Sequence[Tensor | Sequence[int]], background: int | None = None
) -> Tensor:
    """Logits of the classes that a target tells apart; others cannot be, so that nothing teaches where they are not.

    A teacher may be sure of roads and not of poles: what it calls a road is no building but may be a pole.

    Args:
        logits: (N, C, h, w), given back as they are where no class abstains, else stretched to the targets.
        wanted: (N, H, W) class ids, 255 is ignored; the class of a pixel counts even if it abstains elsewhere.
        abstaining: class ids of each image.
        background: class whose pixels hold no object of any class, whoever abstains.
    """
    if not any(len(each) for each in abstaining):
        return logits
    logits = stretch(logits.float(), wanted.shape[-2:])
    hidden = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for image, each in zip(hidden, abstaining, strict=True):
        image[list(map(int, each))] = True
    hidden.scatter_(1, wanted.where(wanted != IGNORE, 0)[:, None], False)
    if background is not None:
        hidden &= (wanted != background)[:, None]
    return logits.masked_fill(hidden, _IMPOSSIBLE)


def class_weight_map(weights: Tensor | None, wanted: Tensor, of_classes: Sequence[float]) -> Tensor | None:
    """Weights (N, H, W) of pixels times those of their classes; None where all are 1."""
    if not of_classes:
        return weights
    table = torch.ones(IGNORE + 1, device=wanted.device)
    table[: len(of_classes)] = torch.tensor(of_classes, device=wanted.device)
    return table[wanted] if weights is None else weights * table[wanted]


def _hardest(per_pixel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest losses of a batch, and how many these are."""
    flat = per_pixel.flatten()
    return flat.topk(min(count, len(flat))).values, torch.tensor(count, device=flat.device)


def dice_loss(probabilities: Tensor, wanted: Tensor, first_class: int = 0, *, by_class: bool = False) -> Tensor:
    """1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e) over labelled pixels and classes of a batch (Milletari et al. 2016).

    Args:
        probabilities: (N, C, H, W).
        wanted: (N, H, W) class ids, 255 is ignored.
        first_class: classes below it are left out; 1 judges the foreground alone.
        by_class: the sums are taken class by class, and the mean over the classes that the batch holds is what counts.
    """
    labelled = wanted != IGNORE
    classes, ids = probabilities.shape[1], wanted[labelled]
    # Sums by class without one-hot maps: a step of 8 windows of 320 px and 12 classes takes .15 s and not .32.
    right = probabilities.gather(1, wanted.where(labelled, 0)[:, None])[:, 0][labelled]
    common = probabilities.new_zeros(classes).index_add(0, ids, right)[first_class:]
    truth = torch.bincount(ids, minlength=classes).to(common.dtype)[first_class:]
    both = torch.einsum("nchw,nhw->c", probabilities, labelled.to(common.dtype))[first_class:] + truth
    if not by_class:
        return 1 - (2 * common.sum() + _EPSILON) / (both.sum() + _EPSILON)
    dice = 1 - (2 * common + _EPSILON) / (both + _EPSILON)
    there = (truth > 0).to(dice.dtype)
    return (dice * there).sum() / there.sum().clamp(min=1)


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
