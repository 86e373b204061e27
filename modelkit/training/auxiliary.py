"""An auxiliary head on a detector: the class of every cell, so that features know classes before regions are of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.base import VisionModel
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.errors import ConfigError
from modelkit.layers.watching import watched
from modelkit.training.student import Images, Targets, weighted_losses


@dataclass(frozen=True, slots=True)
class AuxiliaryConfig:
    """What the head counts; it is dropped when training ends.

    Args:
        weight: of its loss beside the detector's.
        alone: so many steps at first in which backbone and neck learn from this loss only. Without regions a step is
            about twice as cheap, and detection starts from features that know classes.
        background: weight of cells that no object covers.
    """

    weight: float = 0.3
    alone: int = 0
    background: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.alone < 0 or self.background <= 0:
            raise ConfigError(f"an auxiliary head needs weight and background > 0 and alone >= 0, got {self}")


class AuxiliaryHead(nn.Module):
    """The losses of a detector with masks, and of this head on the finest map; a ``ModelLosses`` that learns, too.

    The number of batches seen is a buffer: it is in checkpoints and is rolled back with a step, so resume is exact.

    Args:
        model: a two-stage detector.
        config: what the head counts.

    Raises:
        ConfigError: for a model of another architecture.
    """

    batches: Tensor

    def __init__(self, model: VisionModel, config: AuxiliaryConfig) -> None:
        super().__init__()
        if not isinstance(model, TwoStageDetector) or model.transform.train_min_sizes:
            raise ConfigError(
                f"an auxiliary head stands on a two-stage detector that trains at one size, got {type(model).__name__}"
            )
        self.config, self.num_classes = config, model.num_classes
        self.finest, channels = next(iter(model.neck.out_channels.items()))
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, self.num_classes, 1)
        )
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, model: VisionModel, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Named, weighted losses; in the steps alone ``loss_auxiliary`` is the only one, and weighs 1."""
        detector = cast(TwoStageDetector, model)
        batch, geometries = detector.transform.batch(images, training=True)
        resized = [detector.transform.target(*each) for each in zip(targets, geometries, strict=True)]
        wanted = torch.stack([self._shares(each, geometries[0].padded_hw) for each in resized]).to(batch)
        self.batches += 1
        if self.batches <= self.config.alone:
            return {"loss_auxiliary": self._loss(detector.neck(detector.backbone(batch)), wanted)}
        with watched(detector.neck) as seen:
            losses = weighted_losses(detector, images, targets)
        _, maps = seen
        return losses | {"loss_auxiliary": self.config.weight * self._loss(maps, wanted)}

    def _loss(self, maps: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        """Cross-entropy against the shares of classes in each cell, so that thin strokes are not lost to rounding."""
        logits = self.layers(maps[self.finest])
        weights = logits.new_ones(self.num_classes)
        weights[0] = self.config.background
        return F.cross_entropy(logits, F.adaptive_avg_pool2d(wanted, logits.shape[-2:]), weight=weights)

    def _shares(self, target: Mapping[str, Any], padded_hw: tuple[int, int]) -> Tensor:
        """(C, H, W) 1 for the class of each pixel, 0 for others; a later object lies upon an earlier one."""
        classes = torch.zeros(padded_hw, dtype=torch.int64)
        for mask, label in zip(target["masks"].cpu().bool(), target["labels"].tolist(), strict=True):
            classes[: mask.shape[0], : mask.shape[1]][mask] = label
        return F.one_hot(classes, self.num_classes).permute(2, 0, 1).float()
