"""Models whose queries each know a class and a mask, as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.carriers import SizeHW
from modelkit.carriers.classes import ClassInfo
from modelkit.errors import ConfigError
from modelkit.huggingface.query_masks import QueryMasks
from modelkit.registry import Config
from modelkit.transform import Geometry, ImageTransform


class QuerySegmentor(VisionModel):
    """Queries that each know a class and a mask (Carion et al. 2020, Cheng et al. 2021).

    Args:
        network: see ``HuggingFaceNetwork``.
        num_classes: C; one more stands for nothing.
        transform: options of ``ImageTransform``; images are never padded.
        reading: what is made of them.
        things: class ids of single objects.
        min_score: see ``QueryMasks``.
        grid: see ``QueryMasks``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        transform: Config,
        reading: type[QueryMasks],
        things: frozenset[int],
        min_score: float,
        grid: SizeHW | None,
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.transform = ImageTransform.from_config(transform)
        self.reading, self.things, self.min_score, self.grid = reading, things, min_score, grid
        self.loss_weights = {}

    def anonymous_classes(self) -> tuple[ClassInfo, ...]:
        """All of them: what is nothing has no id."""
        return tuple(ClassInfo(label, f"class {label}", label in self.things) for label in range(self.num_classes))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Not to be had: raises ConfigError. Such models are trained with transformers itself."""
        raise ConfigError("models of Hugging Face that answer queries are trained with transformers, not here")

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """``classes`` (N, Q, C + 1) logits, the last for nothing, and ``masks`` (N, Q, h, w) logits."""
        return self.network(batch)

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> Sequence[QueryMasks]:
        """One per image, in source pixels once it is finished."""
        return [
            self.reading(
                size_hw=geometry.source_hw,
                probabilities=classes.float().softmax(-1),
                logits=masks.float(),
                things=self.things,
                min_score=self.min_score,
                grid=self.grid,
            )
            for classes, masks, geometry in zip(raw["classes"], raw["masks"], geometries, strict=True)
        ]
