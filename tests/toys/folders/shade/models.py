"""A model that only this product has; imported when models are looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelkit import VisionModel, register_model
from modelkit.transform import Geometry, ImageTransform


@dataclass(frozen=True)
class Shade:
    """The carrier and, as nothing is to be decoded, the prediction, too."""

    size_hw: tuple[int, int]
    value: float
    nbytes: int = 8

    def __len__(self) -> int:
        return 1

    def chosen(self, places: np.ndarray) -> Shade:
        return self

    def cpu(self) -> Shade:
        return self

    def finish(self, min_score: float = 0.0) -> Shade:
        return self


@register_model("mean_grey", architecture="MeanGrey", kind="shade")
class MeanGrey(VisionModel):
    """Means of the image at its own size: nothing is resized."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.loss_weights = {}
        self.transform = ImageTransform(
            max_size=65_536, mean=(0, 0, 0), std=(1, 1, 1), scale=1.0, padding="none", size_divisible=1
        )

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> dict[str, Tensor]:
        return {}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        return {"mean": (batch * self.gain).mean((1, 2, 3))}

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Shade]:
        return [Shade(each.source_hw, float(mean)) for mean, each in zip(raw["mean"], geometries, strict=True)]
