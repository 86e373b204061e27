"""What every model of the registry is and does, so that one predictor, one trainer and one tester serve them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from modelkit.carriers import Carrier, Instances, SizeHW
from modelkit.transform import Geometry, ImageTransform


class Prediction(Protocol):
    """What a model decodes for one image: tensors, in source pixels."""

    @property
    def size_hw(self) -> SizeHW:
        """Of the source image."""
        ...

    def cpu(self) -> Prediction:
        """The same on the host."""
        ...

    def finish(self, min_score: float = 0.0) -> Carrier:
        """The carrier of what was found, without what scores below ``min_score``; pure and thread-safe."""
        ...


@runtime_checkable
class SoftMasks(Prediction, Protocol):
    """A prediction of objects whose masks are still probabilities."""

    def finish(self, min_score: float = 0.0, *, threshold: float = 0.5) -> Instances:
        """The carrier; pixels of a probability above ``threshold``, in [0, 1), belong to a mask."""
        ...

    def mirrored(self) -> SoftMasks:
        """What was seen in a mirror, put right: left and right exchanged."""
        ...


class VisionModel(nn.Module, ABC):
    """A model: ``dense`` (fixed shapes, compilable) then ``decode`` (eager), with its transform and its config.

    Attributes:
        config: completed plain JSON with "name"; ``create_model(**config)`` builds the model again.
        transform: owns resizing, normalisation, padding and the way back.
        loss_weights: by loss name; ``forward`` returns losses unweighted.
    """

    config: dict[str, Any]
    transform: ImageTransform
    loss_weights: dict[str, float]

    @abstractmethod
    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses for images (3, H, W) float in [0, 1] and their target dicts."""

    @abstractmethod
    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised to flat named raw tensors; nothing here depends on pixel values."""

    @abstractmethod
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> Sequence[Prediction]:
        """Raw tensors to one prediction an image, in source pixels; no weights change, no gradient is kept."""

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor], *, padded_hw: SizeHW | None = None) -> Sequence[Any]:
        """Predictions for images (3, H, W) float in [0, 1] of any sizes; call ``eval()`` first.

        Args:
            images: sizes may differ.
            padded_hw: batch shape; default: the smallest multiple of the transform's ``size_divisible``.
        """
        if not images:
            return []
        batch, geometries = self.transform.batch(images, padded_hw=padded_hw)
        return self.decode(self.dense(batch), geometries)
