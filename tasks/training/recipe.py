"""A training run as plain JSON: what is trained, with what noise, how long. Its fingerprint names what it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.errors import UsageError
from modelkit import ClassInfo
from modelkit.augmentation import NONE, STRONG, WEAK, Pipeline
from modelkit.carriers.landmarks import KeypointSet
from modelkit.registry import find_model
from modelkit.training.auxiliary import AuxiliaryConfig
from modelkit.training.distillation import DistillationConfig
from modelkit.training.loop import LoopConfig
from modelkit.training.student import UnlabelledSchedule

Config = Mapping[str, Any]
_COUNT_WHEN_SET = ("auxiliary", "inference", "validate_every", "patience", "points")
"""Fields younger than runs that are named by a recipe without them."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What is done to the images of one kind of labels.

    Args:
        augmentation: a pipeline, see ``modelkit.augmentation.pipeline``.
        cutmix: probability that a rectangle of another image of the batch is put in.
        copy_paste: probability that objects of another image of the batch are put on.
    """

    augmentation: Sequence[Config] = WEAK
    cutmix: float = 0.0
    copy_paste: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How a model is trained; see ``tasks.training.work`` for what is done with it.

    Args:
        name: of the weights.
        architecture: registered model name.
        config: of the model; ``num_classes`` included.
        classes: what the class ids mean, (id, name, is_thing) each.
        loop: how to optimise.
        batch_size: human-labelled images per process and step.
        labelled: noise on human labels.
        unlabelled: noise on pseudo-labels: strong, the teacher has seen them plain.
        labelled_share: of the images of a step with both; pseudo-labelled ones come on top of ``batch_size``.
        schedule: of the unlabelled loss.
        repeat_threshold: classes in a smaller share of the images are repeated; 0 = never.
        initial: weights to begin from: a name, file or URI; None: from scratch.
        initial_digest: of these weights, filled in when the run is prepared.
        initial_parts: prefixes of tensor names that are taken over; "" is all.
        frozen: parts that stay as they begin; what begins anew is learnt all the same.
        rate_scales: factors on the learning rate by prefix of parameter names.
        teacher: weights of the teacher of a distillation; None: labels only.
        teacher_digest: as ``initial_digest``.
        distillation: how much the teacher counts.
        auxiliary: a head that helps a detector to learn and is dropped at the end; None: there is none.
        inference: options of the model that the weights get in place of those they were trained with, such as
            ``{"transform": {"min_size": 224}}``.
        validation: share of the labels that is held out to judge by on the way, where they are many enough to spare it.
        validate_every: steps between looks at labels that are held out for it; 0 = ten looks in all.
        patience: after so many looks in a row that saw nothing better the run ends; 0 = never.
        points: what the points of objects are, as ``KeypointSet.to_json`` says it; empty: objects have none.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    classes: tuple[tuple[int, str, bool], ...]
    loop: LoopConfig
    batch_size: int = 8
    labelled: Noise = Noise()
    unlabelled: Noise = Noise(STRONG)
    labelled_share: float = 0.5
    schedule: UnlabelledSchedule = field(default_factory=UnlabelledSchedule)
    repeat_threshold: float = 0.0
    initial: str | None = None
    initial_digest: str | None = None
    initial_parts: Sequence[str] = ("",)
    frozen: Sequence[str] = ()
    rate_scales: dict[str, float] = field(default_factory=dict)
    teacher: str | None = None
    teacher_digest: str | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    auxiliary: AuxiliaryConfig | None = None
    inference: dict[str, Any] = field(default_factory=dict)
    validation: float = 0.0
    validate_every: int = 0
    patience: int = 0
    points: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the model does."""
        return find_model(self.architecture).kind

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``from_json`` gives an equal recipe."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingRecipe:
        """The recipe again.

        Raises:
            UsageError: for unknown keys and values that make no sense.
        """
        parts = {"loop": LoopConfig, "schedule": UnlabelledSchedule, "distillation": DistillationConfig}
        parts |= {"labelled": Noise, "unlabelled": Noise, "auxiliary": AuxiliaryConfig}
        try:
            content = {
                key: parts[key](**inner) if key in parts and inner is not None else inner
                for key, inner in value.items()
            }
            content["classes"] = tuple((int(k), str(name), bool(thing)) for k, name, thing in value["classes"])
            recipe = cls(**content)
            for noise in (recipe.labelled, recipe.unlabelled):
                Pipeline(noise.augmentation)
            recipe.recorded()
            if not 0 <= recipe.validation <= 0.5:
                raise ValueError(f"validation must be a share of the labels up to .5, got {recipe.validation}")
            if recipe.auxiliary is not None and recipe.teacher is not None:
                raise ValueError("a model learns beside a teacher or with an auxiliary head, not both")
        except (TypeError, ValueError, KeyError) as error:
            raise UsageError(f"the recipe makes no sense: {error}") from error
        return recipe

    @property
    def class_infos(self) -> tuple[ClassInfo, ...]:
        """As weights record them."""
        return tuple(ClassInfo(label, name, is_thing) for label, name, is_thing in self.classes)

    def recorded(self) -> dict[str, Any]:
        """What the record of the weights says beside their classes: keywords of ``modelkit.save_weights``."""
        return {"keypoints": KeypointSet.from_json(self.points)} if self.points else {}

    def fingerprint(
        self, labelled_set: str, unlabelled_set: str | None, num_workers: int, validation_set: str | None = None
    ) -> str:
        """Sixteen hex digits that change with anything that changes the weights.

        Where weights come from does not count, what they are does: their digests stand for them.
        """
        content = {key: value for key, value in self.to_json().items() if value or key not in _COUNT_WHEN_SET}
        del content["validation"]  # the sets say what was held out
        content |= {"sets": [labelled_set, unlabelled_set], "num_workers": num_workers}
        content |= {} if validation_set is None else {"validation_set": validation_set}
        for weights in ("initial", "teacher"):
            content[weights] = content.pop(f"{weights}_digest")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_steps(recipe: TrainingRecipe, steps: int) -> TrainingRecipe:
    """The same for another number of steps; the schedules stretch along."""
    loop = recipe.loop
    factor = steps / loop.steps
    changed = dataclasses.replace(
        loop,
        steps=steps,
        warmup_steps=max(1, round(loop.warmup_steps * min(1.0, factor))),
        restart_step=round(loop.restart_step * factor),
        decay_from=round(loop.decay_from * factor),
        checkpoint_every=max(1, min(loop.checkpoint_every, steps)),
    )
    head = recipe.auxiliary
    if head is not None:
        head = dataclasses.replace(head, alone=round(head.alone * factor))
    return dataclasses.replace(recipe, loop=changed, auxiliary=head)


PLAIN = Noise(NONE)
