"""Looks at labels that a training does not learn from: figures by class on the way, the best weights, an early end.

The first process judges the averaged student every ``validate_every`` steps as any weights are judged, keeps it where
it is the best so far, and tells the others when to end. All that is remembered lies in the checkpoint, so that a
resumed run looks at the same steps and ends with the same weights.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import modelkit
from infra.store import Store
from modelkit import ClassInfo, VisionModel, create_model, save_weights
from modelkit.registry import merge_options
from modelkit.training.loop import Trainer
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.figures import to_json
from tasks.labels.label_sets import LabelSet
from tasks.labels.stored import read_stored
from tasks.product import Judgement
from tasks.training.job import TrainingJob
from tasks.training.layout import best_key
from tasks.training.recipe import TrainingRecipe

LOOKS = 10
"""So many looks in a run whose recipe does not say how often."""

logger = logging.getLogger(__name__)


def as_used(recipe: TrainingRecipe, trained: VisionModel) -> VisionModel:
    """The model with the options that its weights get in place of training's."""
    if not recipe.inference:
        return trained
    config = {key: value for key, value in merge_options(trained.config, recipe.inference).items() if key != "name"}
    model = create_model(recipe.architecture, **config)
    model.load_state_dict(trained.state_dict())
    return model


class Validation:
    """The looks of one run.

    Args:
        job: with a ``validation_set``.
        store: that it writes to.
        trainer: whose ``notes`` keep what was seen: ``{"looks": [...], "best": step}``.
    """

    def __init__(self, job: TrainingJob, store: Store, trainer: Trainer) -> None:
        assert job.validation_set is not None
        self._job, self._store, self._trainer = job, store, trainer
        self._labels: LabelSet = read_stored(store.uri_of(job.validation_set))
        self._every = job.recipe.validate_every or max(1, job.recipe.loop.steps // LOOKS)

    @property
    def record(self) -> dict[str, Any]:
        """For the weights' lineage: what was looked at, every look, and which of them the weights are of."""
        return {"images": len(self._labels), "every": self._every, **self._trainer.notes}

    def is_due(self) -> bool:
        """Whether the step just done is one to look after."""
        return self._trainer.step % self._every == 0 or self._trainer.step == self._trainer.config.steps

    def look(self, student: VisionModel) -> None:
        """Judge the averaged student, keep it where none was better, and end the run where it has stopped to learn.

        Args:
            student: stays as it is.
        """
        notes, trainer = self._trainer.notes, self._trainer
        if trainer.rank.is_first:
            judged = self._judge(copy.deepcopy(student).cpu())
            figures = to_json(judged)
            looks = notes.setdefault("looks", [])
            best = max((look["main"] for look in looks), default=float("-inf"))
            main = judged.main_figure if judged.main_figure == judged.main_figure else -1.0  # NaN: nothing to find
            looks.append({"step": trainer.step, "main": round(main, 6), **_by_class(judged)})
            logger.info("step %d: %s on %d held-out images", trainer.step, _words(figures), len(self._labels))
            if main > best:
                notes["best"] = trainer.step
                state = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
                self._store.put(best_key(self._job.fingerprint), safetensors.torch.save(state))
        trainer.ended_early = self._agreed(self._has_stopped_to_learn())

    def best_state(self) -> dict[str, Tensor]:
        """The state of the best look."""
        return safetensors.torch.load(self._store.get(best_key(self._job.fingerprint)))

    def _judge(self, student: VisionModel) -> Judgement:
        recipe = self._job.recipe
        classes = [ClassInfo(label, name, thing) for label, name, thing in recipe.classes]
        with tempfile.TemporaryDirectory(prefix="visionmill-validation-") as folder:
            save_weights(as_used(recipe, student), folder, name=recipe.name, classes=classes, **recipe.recorded())
            predictor = modelkit.load(Path(folder) / f"{recipe.name}.safetensors", device=self._job.device)
            return evaluate_predictor(predictor, self._labels)

    def _has_stopped_to_learn(self) -> bool:
        notes, patience = self._trainer.notes, self._job.recipe.patience
        if not patience or not self._trainer.rank.is_first:
            return False
        later = [look for look in notes["looks"] if look["step"] > notes["best"]]
        return len(later) >= patience

    def _agreed(self, ends: bool) -> bool:
        """What the first process found, in all of them."""
        flag = torch.tensor([float(ends)], device=self._job.device)
        self._trainer.rank.average([flag])
        return bool(flag.item() > 0)


def _by_class(judged: Judgement) -> dict[str, Any]:
    group = next(iter(judged.figures.values()))
    values = group.get("by_class", {})
    return {"by_class": {name: round(float(value), 4) for name, value in values.items()}}


def _words(figures: dict[str, Any]) -> str:
    group, values = next((name, value) for name, value in figures.items() if isinstance(value, dict))
    name, value = next(iter(values.items()))
    return f"{group} {name} {value:.3f}"
