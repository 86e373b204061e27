"""Knowledge distillation (Hinton et al. 2015): a student learns from labels and from a teacher's softened answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.base import VisionModel
from modelkit.detection.roi_heads import BoxHead
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.errors import ConfigError
from modelkit.semantic.segmentor import SemanticSegmentor
from modelkit.training.student import Images, Targets


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) for logits (r, C), mean over rows.

    T^2 keeps the gradient's scale: for large T it tends to (z_s - z_t) / C for zero-mean logits.
    """
    wanted = F.softmax(teacher_logits / temperature, -1)
    given = F.log_softmax(student_logits / temperature, -1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean")


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """alpha T^2 KL + (1 - alpha) CE for logits (r, C) and labels (r,)."""
    divergence = softened_divergence(student_logits, teacher_logits.detach(), temperature)
    return alpha * divergence + (1 - alpha) * F.cross_entropy(student_logits, labels)


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """How much the teacher counts.

    Args:
        alpha: weight of the teacher against the labels, in [0, 1].
        temperature: of both softmaxes, above 0.
    """

    alpha: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not self.temperature > 0:
            raise ConfigError(f"alpha must lie in 0 .. 1 and temperature above 0, got {self.alpha}, {self.temperature}")


class Distiller:
    """The losses of a student beside a teacher; a ``ModelLosses``. Only the class loss changes, the others stay.

    Semantic models are compared pixel by pixel on the student's grid, two-stage detectors region by region on the
    student's own sampled regions. Teacher and student look at the very same pixels.

    Args:
        teacher: stays as it is: evaluation mode, no gradient.
        config: how much it counts.

    Raises:
        ConfigError: when a student is of another kind, has other classes or another normalisation.
    """

    def __init__(self, teacher: VisionModel, config: DistillationConfig) -> None:
        self.teacher, self.config = teacher.eval().requires_grad_(False), config

    def check(self, student: VisionModel) -> None:
        """Refuse a student that this teacher cannot teach."""
        kinds = [kind for kind in (SemanticSegmentor, TwoStageDetector) if isinstance(self.teacher, kind)]
        if not kinds or not isinstance(student, kinds[0]):
            raise ConfigError(
                f"teacher and student must be of one kind, semantic or two-stage, got {type(self.teacher).__name__} "
                f"and {type(student).__name__}"
            )
        ours, theirs = student.transform, self.teacher.transform
        for what, one, other in (
            ("classes", student.num_classes, self.teacher.num_classes),
            ("mean", tuple(ours.mean), tuple(theirs.mean)),
            ("std", tuple(ours.std), tuple(theirs.std)),
        ):
            if one != other:
                raise ConfigError(f"teacher and student must agree in {what}, got {other} and {one}")

    def __call__(self, student: VisionModel, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Named, weighted losses."""
        if isinstance(student, SemanticSegmentor):
            name, divergence, losses = self._pixels(student, images, targets)
        else:
            name, divergence, losses = self._regions(cast(TwoStageDetector, student), images, targets)
        alpha, weights = self.config.alpha, student.loss_weights
        named = {key: weights[key] * value * (1 - alpha if key == name else 1) for key, value in losses.items()}
        named["loss_distillation"] = alpha * weights[name] * divergence
        return named

    def _pixels(
        self, student: SemanticSegmentor, images: Images, targets: Targets
    ) -> tuple[str, Tensor, dict[str, Tensor]]:
        with watched(student.network) as seen:
            losses = student(images, targets)
        (batch,), raw = seen
        logits: Tensor = raw["logits"]
        with torch.no_grad():
            theirs = cast(SemanticSegmentor, self.teacher).network(batch)["logits"]
            theirs = F.interpolate(theirs.float(), size=logits.shape[-2:], mode="bilinear", align_corners=False)
        ours, wanted = (maps.float().permute(0, 2, 3, 1).flatten(0, 2) for maps in (logits, theirs))
        return "loss_semantic", softened_divergence(ours, wanted, self.config.temperature), losses

    def _regions(
        self, student: TwoStageDetector, images: Images, targets: Targets
    ) -> tuple[str, Tensor, dict[str, Tensor]]:
        teacher = cast(TwoStageDetector, self.teacher)
        with watched(student.backbone) as whole, watched(student.roi_heads["box"]) as seen:
            losses = student(images, targets)
        (batch,), _ = whole
        (_, boxes), raw = seen
        with torch.no_grad():
            theirs = cast(BoxHead, teacher.roi_heads["box"])(teacher.dense(batch), boxes)["class_logits"]
        divergence = softened_divergence(raw["class_logits"], theirs, self.config.temperature)
        return "loss_classifier", divergence, losses


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Any]]:
    """Within the block, a list that receives the inputs and the output of the module's (one) call."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.extend((inputs, output)))
    try:
        yield seen
    finally:
        hook.remove()
