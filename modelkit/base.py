"""What every model of the registry is and does, so that one predictor, one trainer and one tester serve them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from modelkit.carriers import Carrier, Instances, SizeHW
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.errors import ConfigError
from modelkit.transform import Geometry, ImageTransform

if TYPE_CHECKING:
    from modelkit.exporting.canvas import Canvas


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


class ScoredCarrier(Carrier, Protocol):
    """A carrier of things that each have a score."""

    def at_least(self, min_score: float) -> Self:
        """Without what scores below ``min_score``."""
        ...


Scored = TypeVar("Scored", bound=ScoredCarrier)


@dataclass(frozen=True, slots=True)
class FinishedPrediction(Generic[Scored]):
    """A prediction that is a carrier already: brought together from several, or followed through a clip."""

    found: Scored

    @property
    def size_hw(self) -> SizeHW:
        """Of the source image."""
        return self.found.size_hw

    @property
    def nbytes(self) -> int:
        """Memory that it holds, about."""
        return self.found.nbytes

    def cpu(self) -> FinishedPrediction[Scored]:
        """The same: it is on the host."""
        return self

    def finish(self, min_score: float = 0.0) -> Scored:
        """Without what scores below ``min_score``."""
        return self.found.at_least(min_score)


@runtime_checkable
class SoftMasks(Prediction, Protocol):
    """A prediction of objects whose masks are still probabilities."""

    def finish(self, min_score: float = 0.0, *, threshold: float = 0.5) -> Instances:
        """The carrier; pixels of a probability above ``threshold``, in [0, 1), belong to a mask."""
        ...

    def mirrored(self) -> SoftMasks:
        """What was seen in a mirror, put right: left and right exchanged."""
        ...


@dataclass(frozen=True, slots=True)
class PairedLogits:
    """What a student and its teacher say of the same pixels or regions of a training batch.

    Args:
        losses: of the student, unweighted and named, as ``forward`` gives them.
        name: of the loss that judges the student's logits by labels.
        student, teacher: (k, C) class logits, row by row of the same place; no gradient reaches the teacher.
    """

    losses: dict[str, Tensor]
    name: str
    student: Tensor
    teacher: Tensor


class VisionModel(nn.Module, ABC):
    """A model: ``dense`` (fixed shapes, compilable) then ``decode`` (eager), with its transform and its config.

    Attributes:
        config: completed plain JSON with "name"; ``create_model(**config)`` builds the model again.
        transform: owns resizing, normalisation, padding and the way back.
        loss_weights: by loss name; ``forward`` returns losses unweighted.
        reference_fields: fields of the target of an earlier frame that the model learns from beside a frame, as
            ``reference_<field>`` next to its ``reference_image`` (3, H, W); None: it learns from each frame alone.
        gives_soft_masks: whether what it decodes are ``SoftMasks``.
        gives_probabilities: whether ``probabilities`` works.
        left_to_caller: what of a result ``traced`` does not hold, in words; "" where it is whole.
        top_down: whether it looks at one object at a time, cut out for it by ``modelkit.landmarks.crops``.
        surface_parts: of the surface whose points it tells, without background; 0: it tells none.
    """

    reference_fields: ClassVar[tuple[str, ...] | None] = None
    gives_soft_masks: ClassVar[bool] = False
    gives_probabilities: ClassVar[bool] = False
    left_to_caller: ClassVar[str] = ""
    top_down: ClassVar[bool] = False
    surface_parts: int = 0

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

    def probabilities(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Tensor]:
        """What ``dense`` gave as class probabilities (C, h, w) float32 of the pixels of each image, padding cut off.

        Raises:
            ConfigError: for models that classify no pixels.
        """
        raise ConfigError(f"{type(self).__name__} gives no probabilities of pixels")

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """What ``decode`` and ``finish`` make of one image, as tensors by name and without a branch that depends on
        values, so that it can be exported (``modelkit.exporting``). Families that can do it say how.

        Args:
            raw: what ``dense`` gave for one image.
            canvas: the way back to source pixels.

        Raises:
            ConfigError: why there is no such graph.
        """
        raise ConfigError(f"{type(self).__name__} has no form of its decoding that does not branch on what it finds")

    @property
    def has_graph(self) -> bool:
        """Whether ``traced`` works."""
        return type(self).traced is not VisionModel.traced

    def anonymous_classes(self) -> tuple[ClassInfo, ...]:
        """Numbered names for the class ids that results may have, where nobody says what these mean."""
        return tuple(ClassInfo(label, f"class {label}") for label in range(1, int(getattr(self, "num_classes", 1))))

    def anonymous_keypoints(self) -> KeypointSet | None:
        """Numbered names for the points of its objects, where nobody says what these are; None: it finds none."""
        count = int(getattr(self, "num_keypoints", 0))
        return KeypointSet.numbered(count) if count else None

    def can_learn_from(self, teacher: VisionModel) -> bool:
        """Whether ``paired_logits`` works with this teacher; a family that can be distilled says so."""
        return False

    @property
    def most_detections(self) -> int | None:
        """How many objects it finds in an image at most, the best ones; None where nothing limits them."""
        return None

    def limit_detections(self, most: int) -> None:
        """Let it find more or fewer objects in an image.

        Args:
            most: at least 1.

        Raises:
            ConfigError: for models that have no such limit.
        """
        raise ConfigError(f"{type(self).__name__} has no limit on the number of detections that could be changed")

    def paired_logits(
        self, teacher: VisionModel, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> PairedLogits:
        """Losses of a training batch, with the class logits of this model and of its teacher at the same places.

        Args:
            teacher: one that ``can_learn_from`` accepts.
            images, targets: as for ``forward``.

        Raises:
            ConfigError: for models that cannot learn from a teacher's logits.
        """
        raise ConfigError(f"{type(self).__name__} cannot learn from a teacher's logits")

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
