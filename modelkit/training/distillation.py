"""Knowledge distillation (Hinton et al. 2015): a student learns from labels and from a teacher's softened answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from modelkit.base import VisionModel
from modelkit.errors import ConfigError
from modelkit.training.student import Images, Targets


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) for logits (r, C), mean over rows.

    T^2 keeps the gradient's scale: for large T it tends to (z_s - z_t) / C for zero-mean logits.
    """
    wanted = F.softmax(teacher_logits / temperature, -1)
    given = F.log_softmax(student_logits / temperature, -1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean")


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

    What is compared is up to the student's family (``VisionModel.paired_logits``): pixels on the student's grid, or the
    regions that the student samples.

    Args:
        teacher: stays as it is: evaluation mode, no gradient.
        config: how much it counts.
    """

    def __init__(self, teacher: VisionModel, config: DistillationConfig) -> None:
        self.teacher, self.config = teacher.eval().requires_grad_(False), config

    def check(self, student: VisionModel) -> None:
        """Refuse a student that this teacher cannot teach.

        Raises:
            ConfigError: when a student is of another kind, has other classes or another normalisation.
        """
        if not student.can_learn_from(self.teacher):
            raise ConfigError(
                f"teacher and student must be of one kind, and one whose logits can be compared; got "
                f"{type(self.teacher).__name__} and {type(student).__name__}"
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
        paired = student.paired_logits(self.teacher, images, targets)
        divergence = softened_divergence(paired.student, paired.teacher, self.config.temperature)
        alpha, weights = self.config.alpha, student.loss_weights
        named = {
            name: weights[name] * value * (1 - alpha if name == paired.name else 1)
            for name, value in paired.losses.items()
        }
        named["loss_distillation"] = alpha * weights[paired.name] * divergence
        return named
