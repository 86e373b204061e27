"""A training run as workers understand it, and the one product it leaves; holds no tensors and no secrets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import modelkit
from infra.errors import ObjectGone, UsageError
from infra.store import Store, open_store
from modelkit.records import Weights
from modelkit.registry import find_model
from modelkit.training.transfer import IMAGENET, digest_of_state, imagenet_state
from tasks.engine.prepare import describe_model
from tasks.labels.class_map import FileId
from tasks.output.layout import canonical_json
from tasks.product import find_kind
from tasks.training.layout import run_key, weights_keys
from tasks.training.recipe import TrainingRecipe


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What a worker gets.

    Args:
        recipe: with the digests of all weights it begins from.
        output_uri: where sets, checkpoints and weights lie.
        labelled_set: id of the training set of human labels.
        unlabelled_set: id of the one of pseudo-labels, or None.
        num_workers: processes that share the work; part of the run's identity.
        use_gpu: one GPU for each.
        validation_set: key of labels that the run is judged by and does not learn from, or None.
        file_ids: class id -> what the file of labels calls it, where any differs; goes into the weights' lineage.
    """

    recipe: TrainingRecipe
    output_uri: str
    labelled_set: str
    unlabelled_set: str | None = None
    num_workers: int = 1
    use_gpu: bool = False
    validation_set: str | None = None
    file_ids: Mapping[str, FileId] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Names everything the run leaves."""
        return self.recipe.fingerprint(self.labelled_set, self.unlabelled_set, self.num_workers, self.validation_set)

    @property
    def device(self) -> str:
        """Where the model lives."""
        return "cuda" if self.use_gpu else "cpu"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**dataclasses.asdict(self), "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainingJob:
        """The job again."""
        return cls(**{**value, "recipe": TrainingRecipe.from_json(value["recipe"])})


def prepare_training(
    output: str,
    recipe: TrainingRecipe,
    labelled_set: str,
    unlabelled_set: str | None = None,
    *,
    num_workers: int = 1,
    use_gpu: bool = False,
    validation_set: str | None = None,
    file_ids: Mapping[int, FileId] | None = None,
) -> TrainingJob:
    """Find the weights that are begun from, check the recipe, and write down what will be done.

    Raises:
        UsageError: a model that cannot be trained here, unknown weights, a recipe that makes no sense.
        StoreError: the output can't be written to.
    """
    try:
        model = find_model(recipe.architecture)
    except modelkit.UnknownNameError as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models") from error
    find_kind(model.kind)
    digests: dict[str, Any] = {
        f"{which}_digest": _digest(uri, recipe)
        for which in ("initial", "teacher")
        if (uri := getattr(recipe, which)) is not None
    }
    recipe = TrainingRecipe.from_json(dataclasses.replace(recipe, **digests).to_json())
    store = open_store(output)
    names = {str(label): file_id for label, file_id in (file_ids or {}).items()}
    job = TrainingJob(recipe, store.uri, labelled_set, unlabelled_set, num_workers, use_gpu, validation_set, names)
    store.put_if_absent(run_key(job.fingerprint), canonical_json(job.to_json()))
    return job


def _digest(weights: str, recipe: TrainingRecipe) -> str:
    if weights != IMAGENET:
        return describe_model(weights, None).digest
    try:
        return digest_of_state(imagenet_state(modelkit.create_model(recipe.architecture, **recipe.config)))
    except modelkit.ModelkitError as error:
        raise UsageError(f"--from {IMAGENET}: {error}") from error


def finished_weights(store: Store, job: TrainingJob) -> tuple[str, Weights] | None:
    """URI and record of what a run has left, or None when it is not done."""
    tensors, record = weights_keys(job.fingerprint, job.recipe.name)
    try:
        content = store.get(record)
        store.info(tensors)
    except ObjectGone:
        return None
    return store.uri_of(tensors), Weights.from_json(json.loads(content), store.uri_of(record))
