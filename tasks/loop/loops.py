"""What all rounds of a loop share: what was asked for, where it lies, who is in which split, and what it teaches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from infra.errors import UsageError
from infra.store import Store
from modelkit import ClassInfo
from tasks.labels.label_sets import LabelSet
from tasks.loop import journal
from tasks.loop.candidates import Asked, Teacher
from tasks.loop.champion import Model
from tasks.loop.data import Division, LoopData
from tasks.loop.kinds import check_teaches, loop_kind
from tasks.loop.methods import LoopMethods, ObjectSource
from tasks.loop.promises import GEOMETRY_PRECISION
from tasks.loop.schemas import MODELS
from tasks.loop.split_names import CALIBRATION, GATE, TRAIN, UNLABELLED
from tasks.output import tables
from tasks.output.layout import canonical_json
from tasks.product import find_kind
from tasks.training.examples import examples_of_labels, save_training_set
from tasks.training.inspection import inspect_labels
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.presets import kind_of_labels, kind_of_preset, make_recipe
from tasks.training.recipe import TrainingRecipe


class Settings(Protocol):
    """What was asked for, as far as the work of a loop depends on it; the flow's parameters say what each means."""

    @property
    def task(self) -> str | None: ...
    @property
    def recipe(self) -> str | None: ...
    @property
    def initial(self) -> str | None: ...
    @property
    def size(self) -> str: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def tta(self) -> Sequence[str]: ...
    @property
    def detector(self) -> str | None: ...
    @property
    def box_score(self) -> float: ...
    @property
    def box_classes(self) -> Sequence[str]: ...
    @property
    def frame_stride(self) -> int: ...
    def look_options(self) -> dict[str, int]: ...
    @property
    def precision(self) -> float: ...
    @property
    def class_precision(self) -> Mapping[str, float]: ...
    @property
    def geometry_precision(self) -> float: ...
    @property
    def crossfit(self) -> bool: ...
    @property
    def max_rounds(self) -> int: ...
    @property
    def min_gain(self) -> float: ...
    @property
    def audit(self) -> str | None: ...
    @property
    def audit_labels(self) -> int: ...
    @property
    def require_approval(self) -> bool: ...
    @property
    def workers(self) -> int: ...
    @property
    def gpus(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop.

    Args:
        settings: what was asked for.
        store: its output.
        data: who is in which split.
        recipe: of all its models.
        methods: of the kind that it teaches.
        run_id: names it.
        device: where this process looks at images, "cpu" or "cuda".
    """

    settings: Settings
    store: Store
    data: LoopData
    recipe: TrainingRecipe
    methods: LoopMethods
    run_id: str
    device: str = "cpu"

    @property
    def kind(self) -> str:
        """What its models do."""
        return self.recipe.kind

    @property
    def calibrating(self) -> LabelSet:
        """The labels that decide thresholds; with cross-fitting those that train, each seen by a model without it."""
        return self.data.split(TRAIN if self.settings.crossfit else CALIBRATION)

    @property
    def looks(self) -> dict[str, int]:
        """How every model of the loop looks at images; the same on labelled and unlabelled ones."""
        return self.settings.look_options()

    @property
    def unseen(self) -> LabelSet:
        """Labels that no student has learnt from, to calibrate it by: with cross-fitting only the gate's are left."""
        return self.data.split(GATE if self.settings.crossfit else CALIBRATION)

    def asked(self, teacher: Teacher, number: int) -> Asked:
        """Whose candidates are asked for in a round."""
        return Asked(self.kind, self.methods.score_floor, teacher, self.run_id, number)

    def inference_uri(self, champion: Model) -> str:
        """One output for each way to look: a later loop may show the same champion other views, or other frames."""
        spec = self.methods.predictor_spec
        seen = [None if spec is None else spec.to_json(), self.settings.frame_stride]
        way = canonical_json([*seen, self.looks] if self.looks else seen)
        return self.store.uri_of(f"inference/{champion.weights_sha256[:16]}-{hashlib.sha256(way).hexdigest()[:8]}")


def kind_for(settings: Settings, labels: LabelSet) -> str:
    """What the models of a loop do: what was asked for, else what the recipe's model does, else what the labels are.

    Of labels that suit several kinds, such as masks with points, it is one that the loop teaches.
    """
    if settings.task is not None:
        return settings.task
    if settings.recipe is not None:
        return kind_of_preset(settings.recipe)
    return kind_of_labels(inspect_labels(labels), lambda kind: kind.loop is not None)


def recipe_for(settings: Settings, data: LoopData | Division) -> TrainingRecipe:
    """Every model of a loop has the same recipe, steps and noise; they differ by name.

    Where none is named it is derived, as ``visionmill train`` does, but from the labels that train alone: those that
    calibrate and judge decide nothing about it. Kinds for which none can be derived have a usual one.

    Raises:
        UsageError: an unknown recipe, or one whose model does something else than what was asked for.
    """
    kind = kind_for(settings, data.labels)
    usual = kind if find_kind(kind).derived is not None else find_kind(kind).default_recipe
    recipe = make_recipe(
        settings.recipe or usual,
        data.labels.classes,
        steps=settings.steps,
        seed=settings.seed,
        name="teacher",
        changes={} if settings.initial is None else {"initial": settings.initial},
        seen=inspect_labels(data.split(TRAIN)),
        size=settings.size,
    )
    check_teaches(kind, recipe)
    # Round 0 and the baseline get the student's noise, too: otherwise the gain would be the augmentation's.
    return dataclasses.replace(recipe, labelled=recipe.unlabelled)


def open_loop(settings: Settings, store: Store, data: LoopData, name: str, *, device: str = "cpu") -> Loop:
    """The loop of this name that has not ended, with the recipe that it began with, or a new one.

    Raises:
        UsageError: as :func:`recipe_for` does.
    """
    recipe = recipe_for(settings, data)
    # What cannot be is refused before anything is written.
    check_promises(settings, open_methods(recipe, settings, data), data.labels.classes)
    run_id = journal.open_loop(store, name)
    recipe = TrainingRecipe.from_json(journal.keep_recipe(store, run_id, recipe.to_json()))
    return Loop(settings, store, data, recipe, open_methods(recipe, settings, data), run_id, device)


def open_methods(recipe: TrainingRecipe, settings: Settings, data: LoopData | Division) -> LoopMethods:
    """The methods of a loop, fitted to the labels that train.

    Raises:
        UsageError: a kind that the loop does not teach, views for a kind that takes none, a detector for models that
            need none, or none for models that do.
    """
    methods: LoopMethods = loop_kind(recipe.kind).open(recipe, tuple(settings.tta))
    detector = settings.detector
    objects = None if detector is None else ObjectSource(detector, settings.box_score, tuple(settings.box_classes))
    return methods.fitted(data.split(TRAIN), objects)


def check_promises(settings: Settings, methods: LoopMethods, classes: Sequence[ClassInfo]) -> None:
    """Raises UsageError for a precision that is promised of a class, or of geometry, that there is not."""
    if settings.geometry_precision != GEOMETRY_PRECISION and not methods.certifies_geometry:
        raise UsageError(
            "--geometry-precision promises something of boxes and masks: this kind of model certifies none",
            hint="leave it out",
        )
    names = [each.name for each in methods.promised(classes)]
    unknown = sorted(settings.class_precision.keys() - set(names))
    if unknown:
        raise UsageError(
            f"--class-precision names {', '.join(unknown)}: there is no such class", hint=f"classes: {', '.join(names)}"
        )


def job_for(loop: Loop, labels: LabelSet, *, role: str, pseudo: str | None = None) -> TrainingJob:
    """The training of a model of the loop; only the labels differ."""
    settings = loop.settings
    recipe = dataclasses.replace(loop.recipe, name=role)
    labelled = save_training_set(loop.store, examples_of_labels(labels.table.to_pylist()))
    return prepare_training(
        loop.store.uri,
        recipe,
        labelled,
        pseudo,
        num_workers=settings.workers,
        use_gpu=settings.gpus,
        file_ids=loop.data.labels.file_ids,
    )


def check_can_be_calibrated(loop: Loop, champion: Model) -> None:
    """Refuse cross-fitting for a teacher that is not the first model of these labels, all of which train.

    What is unlabelled may have changed: an earlier loop's division of the labels is kept, so these are the same.

    Raises:
        UsageError: it may have learnt from labels that are to calibrate it.
    """
    if not loop.settings.crossfit:
        return
    rows = tables.read(loop.store, MODELS).to_pylist()
    known = {(row["model_id"], row["role"], row["label_set_id"]) for row in rows}
    first = (champion.model_id, "teacher", loop.data.labels.label_set_id) in known
    if not first or loop.data.manifest.counts.get(CALIBRATION):
        raise UsageError(
            f"cross-fitting calibrates the first model of these labels only, and {champion.model_id} is another one",
            hint="--calibration holdout with some new labels to calibrate by, or another --output",
        )


def check_division(data: LoopData, *, crossfit: bool) -> None:
    """Refuse a loop without something to train, calibrate or judge by, or to label.

    Raises:
        UsageError: a split is empty.
    """
    labelled = (TRAIN, GATE) if crossfit else (TRAIN, CALIBRATION, GATE)
    empty = [name for name in (*labelled, UNLABELLED) if not data.manifest.counts.get(name)]
    if empty:
        raise UsageError(
            f"the split leaves nothing for {', '.join(empty)}: {data.manifest.counts}",
            hint="more labels, other --share values, or an unlabelled source that is not all near labelled items; what "
            "an earlier loop of this output decided stays: there only new labels, or another --output, can change it",
        )
