"""The training loop: AdamW or SGD, warm-up and cosine, clipping, EMA, a guard against NaN, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from modelkit.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from modelkit.training.ema import Ema
from modelkit.training.processes import Rank
from modelkit.training.transfer import train_mode

Losses = Callable[[int], dict[str, Tensor]]
"""Step number to named, weighted losses of that step's batch; a pure function of the step, the rank and the weights."""


class TrainingDivergedError(ValueError):
    """Too many steps in a row gave a loss or gradient that is not finite."""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How to optimise.

    Args:
        steps: in all.
        learning_rate: at the peak.
        warmup_steps: linear from 0.
        restart_step: the warm-up is repeated from here (a second phase with fresh heads begins); 0 = never.
        decay_from: step at which the cosine decay to ``final_share`` of the peak begins.
        final_share: of the peak, at the last step.
        optimiser: "adamw" or "sgd" (Nesterov, momentum 0.9).
        weight_decay: on weights with at least two dimensions only.
        clip_norm: largest global gradient norm.
        ema_decay: see ``Ema``.
        max_bad_steps: so many steps in a row may be skipped for NaN before the run is given up.
        checkpoint_every: steps.
        seed: of the run.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    restart_step: int = 0
    decay_from: int = 0
    final_share: float = 0.01
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    max_bad_steps: int = 20
    checkpoint_every: int = 250
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        since = step - self.restart_step if self.restart_step and step >= self.restart_step else step
        warm = min(1.0, (since + 1) / max(1, self.warmup_steps))
        done = max(0.0, (step - self.decay_from) / max(1, self.steps - self.decay_from))
        share = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * warm * share


class Trainer:
    """Runs a model towards the end of its recipe, from wherever its last checkpoint left off.

    A step whose loss or gradient is not finite is rolled back: parameters, optimiser, average and every buffer (also
    the running statistics that the forward pass has touched) are as they were before it.

    Args:
        model: trained in place.
        losses: see ``Losses``.
        config: how to optimise.
        checkpoints: where they live; None keeps nothing.
        fingerprint: names the recipe; a checkpoint of another recipe is refused.
        rank: which of several processes this is.
        rate_scales: factor on the learning rate by prefix of parameter names; the longest prefix that fits counts, and
            without one the factor is 1. Parts that shall not learn at all: ``modelkit.training.transfer.freeze``.

    Attributes:
        notes: plain JSON of the caller's, kept in the checkpoint.
        ended_early: set by the caller's ``report`` to end the run after the step that it reports.

    Raises:
        CheckpointError: when there is a checkpoint of another recipe or a damaged one.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        config: LoopConfig,
        *,
        checkpoints: Checkpoints | None = None,
        fingerprint: str = "",
        rank: Rank | None = None,
        rate_scales: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.losses, self.config = model, losses, config
        self.checkpoints, self.fingerprint, self.rank = checkpoints, fingerprint, rank or Rank()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = _make_optimiser(model, config, rate_scales or {})
        self.ema = Ema(model, config.ema_decay)
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.ended_early = False
        self._bad_in_row = 0
        self._resume()

    def run(self, until: int | None = None, report: Callable[[Trainer, dict[str, float]], None] | None = None) -> None:
        """Train up to step ``until`` (default: the end).

        Args:
            until: steps in all, not more than ``config.steps``.
            report: called after every step with this trainer and the step's losses.

        Raises:
            TrainingDivergedError: see ``LoopConfig.max_bad_steps``.
        """
        stop = min(self.config.steps, until if until is not None else self.config.steps)
        train_mode(self.model)
        while self.step < stop and not self.ended_early:
            started = time.perf_counter()
            values = self._one_step()
            self.seconds += time.perf_counter() - started
            if report is not None:
                report(self, values)
            if self.checkpoints and (
                self.step % self.config.checkpoint_every == 0 or self.step == stop or self.ended_early
            ):
                self.save()

    def _one_step(self) -> dict[str, float]:
        seed_step(self.config.seed, self.step, self.rank.index)
        rate = self.config.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate_scale"]
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        losses = self.losses(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.rank.average(p.grad for p in self.parameters if p.grad is not None)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        # The averaged norm is the same in every process, so all of them skip or none does.
        if math.isfinite(norm):
            # Statistics of one batch in many processes are one: else a resumed run would differ from an unbroken one.
            self.rank.average(b for b in self.model.buffers() if b.is_floating_point())
            self.optimiser.step()
            self.ema.update(self.model)
            self._bad_in_row = 0
        else:
            self._roll_back(losses, buffers)
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": norm, "rate": rate}

    @torch.no_grad()
    def _roll_back(self, losses: dict[str, Tensor], buffers: list[Tensor]) -> None:
        self.skipped += 1
        self._bad_in_row += 1
        self.optimiser.zero_grad(set_to_none=True)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if self._bad_in_row >= self.config.max_bad_steps:
            named = {name: float(value.detach()) for name, value in losses.items()}
            raise TrainingDivergedError(
                f"{self._bad_in_row} steps in a row up to step {self.step} were not finite: {named}"
            )

    def save(self) -> None:
        """Write the checkpoint (first process only)."""
        if self.checkpoints is None or not self.rank.is_first:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        numbers = {
            "step": self.step,
            "ema_updates": self.ema.num_updates,
            "skipped": self.skipped,
            "bad_in_row": self._bad_in_row,
            "seconds": self.seconds,
            "fingerprint": self.fingerprint,
            "history": self.history,
            "notes": self.notes,
            "ended_early": self.ended_early,
        }
        self.checkpoints.save(Checkpoint(tensors, numbers))

    def _resume(self) -> None:
        saved = self.checkpoints.load() if self.checkpoints else None
        if saved is None:
            return
        if saved.numbers["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{self.checkpoints} holds a checkpoint of another recipe ({saved.numbers['fingerprint']!r}, "
                f"wanted {self.fingerprint!r}); choose another place or delete it"
            )
        self.model.load_state_dict(saved.part("model"))
        self.ema.load(saved.part("ema"), saved.numbers["ema_updates"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.part("optimiser").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.step, self.skipped = saved.numbers["step"], saved.numbers["skipped"]
        self.seconds, self.history = saved.numbers["seconds"], saved.numbers["history"]
        self._bad_in_row = saved.numbers["bad_in_row"]
        self.notes, self.ended_early = saved.numbers.get("notes", {}), saved.numbers.get("ended_early", False)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch from (run, step, process): the state of randomness is a function of the step, so resume is exact."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _make_optimiser(model: nn.Module, config: LoopConfig, rate_scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """One group for each pair of rate and weight decay; without ``rate_scales`` that makes two."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_scale_of(name, rate_scales), parameter.dim() > 1), []).append(parameter)
    ordered = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.learning_rate * scale,
            "rate_scale": scale,
        }
        for (scale, decays), parameters in sorted(groups.items(), key=lambda entry: (-entry[0][0], not entry[0][1]))
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(ordered, lr=config.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(ordered, lr=config.learning_rate)


def _scale_of(name: str, rate_scales: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in rate_scales if name.startswith(prefix)]
    return rate_scales[max(fitting, key=len)] if fitting else 1.0
