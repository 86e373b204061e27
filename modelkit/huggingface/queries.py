"""Models whose queries each know a class and a mask, as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.errors import ConfigError
from modelkit.huggingface.query_masks import QueryMasks
from modelkit.registry import Config
from modelkit.transform import Geometry, ImageTransform

# transformers does not say which classes are things. By their number the sets are known: COCO's panoptic classes in a
# row, the same under their original ids (DETR), Cityscapes.
PANOPTIC = {133: range(80), 250: range(1, 91)}
_THINGS = {**PANOPTIC, 19: range(11, 19)}


def things_of(num_labels: int) -> range:
    """Class ids of single objects among so many."""
    return _THINGS.get(num_labels, range(num_labels))


class QuerySegmentor(VisionModel):
    """Queries that each know a class and a mask (Carion et al. 2020, Cheng et al. 2021).

    Args:
        network: see ``HuggingFaceNetwork``.
        num_classes: C; one more stands for nothing.
        transform: options of ``ImageTransform``.
        is_panoptic: one segment per pixel, stuff merged; else overlapping instances.
        min_score: of panoptic segments.
    """

    def __init__(
        self, network: nn.Module, *, num_classes: int, transform: Config, is_panoptic: bool, min_score: float
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.transform = ImageTransform.from_config(transform)
        self.is_panoptic, self.min_score = is_panoptic, min_score
        self.loss_weights = {}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Not to be had: raises ConfigError. Such models are trained with transformers itself."""
        raise ConfigError("models of Hugging Face that answer queries are trained with transformers, not here")

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """``classes`` (N, Q, C + 1) logits, the last for nothing, and ``masks`` (N, Q, h, w) logits."""
        return self.network(batch)

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[QueryMasks]:
        """One per image, in source pixels once it is asked for instances."""
        things = frozenset(things_of(self.num_classes))
        return [
            QueryMasks(
                size_hw=geometry.source_hw,
                probabilities=classes.float().softmax(-1)[:, :-1],
                logits=masks.float(),
                things=things,
                is_panoptic=self.is_panoptic,
                min_score=self.min_score,
            )
            for classes, masks, geometry in zip(raw["classes"], raw["masks"], geometries, strict=True)
        ]
