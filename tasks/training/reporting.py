"""What a training says while it goes on: a line for people, and figures for the logs. Only the first process speaks."""

from __future__ import annotations

import time
from collections.abc import Mapping

from infra.telling import duration, tell
from modelkit.training.loop import Trainer
from tasks.training.job import TrainingJob
from tasks.training.run_log import LoggedRun, RunLogs

LOGGED_POINTS = 1000
"""So many points of a run are logged, about, beside every look at held-out labels."""
_NO_LOSSES = ("norm", "rate")


def logged_run(job: TrainingJob, trainer: Trainer) -> LoggedRun:
    """A run as loggers are told of it, from wherever its checkpoint left it."""
    sets = {"labelled_set": job.labelled_set, "unlabelled_set": job.unlabelled_set, "validation": job.validation_set}
    return LoggedRun(
        name=job.recipe.name,
        fingerprint=job.fingerprint,
        steps=job.recipe.loop.steps,
        output_uri=job.output_uri,
        begins_at=trainer.step,
        recipe=job.recipe.to_json(),
        sets={role: name for role, name in sets.items() if name is not None},
        history=list(trainer.history),
        looks=list(trainer.notes.get("looks", ())),
    )


class Reporter:
    """Speaks for one process of a run.

    Args:
        job: what is trained. trainer: who has not begun yet. logs: that get the figures.
    """

    def __init__(self, job: TrainingJob, trainer: Trainer, logs: RunLogs) -> None:
        self._trainer, self._logs = trainer, logs
        self._images_a_step = job.recipe.batch_size * job.num_workers
        self._every = max(1, trainer.config.steps // LOGGED_POINTS)
        self._first, self._first_s, self._begin_s = trainer.step, trainer.seconds, time.monotonic()

    def step(self, values: Mapping[str, float]) -> None:
        """After a step: losses by name, ``norm`` and ``rate``."""
        trainer = self._trainer
        if not trainer.rank.is_first:
            return
        done, steps = trainer.step - self._first, trainer.config.steps
        losses = {name: value for name, value in values.items() if name not in _NO_LOSSES}
        loss, images_per_s = (
            sum(losses.values()),
            self._images_a_step * done / max(trainer.seconds - self._first_s, 1e-9),
        )
        left_s = (time.monotonic() - self._begin_s) / done * (steps - trainer.step)  # looks at held-out labels included
        said = [f"loss {loss:.4g}", f"rate {values['rate']:.2g}", f"{images_per_s:.1f} images/s"]
        tell(
            "training", trainer.step, steps, "steps", ", ".join([*said, *self._held_out(), f"{duration(left_s)} left"])
        )
        if trainer.step % self._every == 0 or trainer.step in (1, steps):
            figures = {"loss": loss, **losses, **{name: values[name] for name in _NO_LOSSES}}
            figures["images_per_second"] = images_per_s
            self._logs.log(trainer.step, {f"train/{name}": value for name, value in figures.items()})

    def look(self) -> None:
        """After a look at held-out labels. A figure below 0 means that there was nothing to find."""
        if not self._trainer.rank.is_first:
            return
        look = self._trainer.notes["looks"][-1]
        figures = {"main": look["main"]} | {f"by_class/{name}": value for name, value in look["by_class"].items()}
        known = {f"validation/{name}": value for name, value in figures.items() if value >= 0}
        self._logs.log(look["step"], known)

    def _held_out(self) -> list[str]:
        looks = self._trainer.notes.get("looks")
        return [f"held out {looks[-1]['main']:.3f}"] if looks else []
