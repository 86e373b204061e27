"""Training on human and machine labels together: the unlabelled loss is ramped, capped, and silent at both ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.training.processes import Rank

Images = Sequence[Tensor]
Targets = Sequence[Mapping[str, Any]]
ModelLosses = Callable[[VisionModel, Images, Targets], dict[str, Tensor]]
"""A model, images and targets to named, weighted losses."""

UNLABELLED = "unlabelled_"
MAX_UNLABELLED_WEIGHT = 4.0
_MEMORY_STEPS = 50


def weighted_losses(model: VisionModel, images: Images, targets: Targets) -> dict[str, Tensor]:
    """The model's own losses times its own weights."""
    return {name: model.loss_weights[name] * value for name, value in model(images, targets).items()}


@dataclass(frozen=True, slots=True)
class UnlabelledSchedule:
    """When and how much pseudo-labels count.

    Args:
        max_weight: of the unlabelled loss after the ramp; more than 4 is refused, 1 is where to begin.
        burn_in: share of the steps before it begins.
        ramp: share of the steps in which it grows linearly.
        final: share of the steps at the end that see human labels only, against the bias of pseudo-labels.
        cap: the unlabelled loss counts at most as this times the running mean of the supervised one.
    """

    max_weight: float = 1.0
    burn_in: float = 0.1
    ramp: float = 0.1
    final: float = 0.1
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_weight <= MAX_UNLABELLED_WEIGHT:
            raise ValueError(f"max_weight must lie in 0 .. {MAX_UNLABELLED_WEIGHT:g}, got {self.max_weight}")
        shares = (self.burn_in, self.ramp, self.final)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"burn_in, ramp and final must be shares of the steps, got {shares}")
        if not 0 < self.cap <= 2:
            raise ValueError(f"cap must lie in 0 .. 2, got {self.cap}")

    def weight_at(self, step: int, steps: int) -> float:
        """lambda(t): 0 in burn-in and final phase, between them max_weight * clip((t - t_b) / ramp, 0, 1)."""
        if step >= steps - round(self.final * steps):
            return 0.0
        since = step - self.burn_in * steps
        return self.max_weight * min(1.0, max(0.0, since / max(self.ramp * steps, 1e-9)))


class StudentTraining(nn.Module):
    """The module that a loop trains: the student, and the running mean of its supervised loss as a buffer.

    Being a buffer it is in checkpoints and is rolled back with the step, so resume is exact.

    Args:
        student: trained in place.
        schedule: of the unlabelled loss.
        steps: of the run.
        losses: of the student on a batch; default its own, weighted.
        rank: the mean is that of all processes.
    """

    supervised_mean: Tensor
    supervised_steps: Tensor

    def __init__(
        self,
        student: VisionModel,
        schedule: UnlabelledSchedule,
        steps: int,
        *,
        losses: ModelLosses = weighted_losses,
        rank: Rank | None = None,
    ) -> None:
        super().__init__()
        self.student, self.schedule, self.steps = student, schedule, steps
        self._losses, self._rank = losses, rank or Rank()
        self.register_buffer("supervised_mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("supervised_steps", torch.zeros((), dtype=torch.int64))

    def uses_unlabelled(self, step: int) -> bool:
        """Whether pseudo-labels count in a step."""
        return self.schedule.weight_at(step, self.steps) > 0

    def losses(
        self, step: int, labelled: tuple[Images, Targets], unlabelled: tuple[Images, Targets]
    ) -> dict[str, Tensor]:
        """Named losses to be added up: the supervised ones, and those of pseudo-labels as ``unlabelled_...``.

        The latter are scaled as a whole by lambda(step), and once more where their sum exceeds the cap.
        """
        named = self._losses(self.student, *labelled)
        self._remember(torch.stack(list(named.values())).sum().detach())
        weight = self.schedule.weight_at(step, self.steps)
        if weight == 0 or not unlabelled[0]:
            return named
        pseudo = self._losses(self.student, *unlabelled)
        total = torch.stack(list(pseudo.values())).sum().detach()
        limit = self.schedule.cap * self.supervised_mean
        scale = weight * torch.where(total > limit, limit / total, 1.0)
        return named | {f"{UNLABELLED}{name}": scale * value for name, value in pseudo.items()}

    @torch.no_grad()
    def _remember(self, value: Tensor) -> None:
        value = value.clone().to(self.supervised_mean)
        self._rank.average([value])
        self.supervised_steps += 1
        share = torch.clamp(1 / self.supervised_steps, min=1 / _MEMORY_STEPS)
        self.supervised_mean += (value - self.supervised_mean) * share
