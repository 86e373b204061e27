"""Train a model: from scratch, from other weights, or from a teacher. Three steps: read labels, train, judge.

The same body runs as a Prefect flow and as plain Python; see :mod:`flows.steps`. Run again after any accident it goes
on from the last checkpoint; run again after the end, it finds the weights and does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prefect import flow
from rich.console import Console

from flows import page
from flows.labels import in_groups, labels_of, note_misfit
from flows.parameters import TrainParameters
from flows.progress import note, progress_shown
from flows.recording import prepare_recording, without_secrets
from flows.steps import Steps, orchestrated_steps, plain_steps
from flows.summary import Summary
from flows.work import SERIAL, own_device
from infra.ray_session import ray_session
from infra.store import open_store
from infra.telling import tell
from modelkit import Weights
from tasks.evaluation.evaluate import evaluate_model
from tasks.evaluation.figures import to_json
from tasks.labels.folds import fold_groups
from tasks.labels.label_sets import LabelSet
from tasks.labels.stored import write_stored
from tasks.product import Judgement
from tasks.report.training_page import CURVES
from tasks.training.examples import examples_of_labels, save_training_set
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.layout import curves_key, validation_key
from tasks.training.presets import recipe_for
from tasks.training.run import train_here, train_on_ray
from tasks.training.run_log import LogTarget, log_target

LEAST_TO_DIVIDE = 20
"""Labelled images; of fewer, a tenth says nothing and is missed in training."""


def run_train(parameters: TrainParameters, *, orchestrated: bool = True, console: Console | None = None) -> Summary:
    """Carry the training out from here; see :func:`flows.job.run_job`.

    Raises:
        VisionmillError: as the steps do; the checkpoint stays, and the same call goes on from there.
    """
    with progress_shown(console):
        if not orchestrated:
            return _train(parameters, plain_steps)
        prepare_recording()
        summary: Summary = train_model(parameters)
        return summary


def _name_of(parameters: TrainParameters) -> str:
    recipe = f"{page.short(parameters.recipe)} " if parameters.recipe else ""
    return f"train {recipe}on {page.short(parameters.labelled)}"


@flow(name="train-model", flow_run_name=page.called(_name_of), persist_result=False)
def train_model(parameters: TrainParameters) -> Summary:
    """Train on human labels: from scratch, by transfer, or by distillation."""
    recipe = page.short(parameters.recipe) if parameters.recipe else "from the labels"
    with without_secrets(), page.run_shown(["train", f"recipe: {recipe}"]):
        summary = _train(parameters, orchestrated_steps)
        page.show_training(summary)
        return page.completed(words_of_training(summary), summary)  # type: ignore[return-value]  # Prefect gives its data


def words_of_training(summary: Summary) -> str:
    """A training in one line."""
    return f"{summary['kind']} {summary['model']} in {summary['steps']} steps, {summary['seconds']:.1f} s"


def _train(parameters: TrainParameters, step: Steps) -> Summary:
    began = time.monotonic()
    logs = [log_target(spec) for spec in parameters.log]
    labels = step("read labels", labels_of, parameters.labelled, parameters)
    held_out = None
    if parameters.evaluate is not None:  # read before anything is trained: what is wrong with it shows now
        held_out = step("read labels", labels_of, parameters.evaluate, parameters)
    job = step("prepare training", prepare, parameters, labels)
    uri, record = step("train", carry_out, job, parameters.ray, logs)
    judged = None if held_out is None else step("evaluate", _evaluate, uri, held_out, parameters)
    summary = _summary(job, uri, record, judged, time.monotonic() - began)
    told = {"labels": labels.to_json(), "held_out": None if held_out is None else held_out.to_json()}
    return {**told, **summary}


def prepare(parameters: TrainParameters, labels: LabelSet) -> TrainingJob:
    """The training set in the output, and the job that trains on it."""
    recipe, labels = recipe_for(
        labels,
        parameters.recipe,
        steps=parameters.steps,
        seed=parameters.seed,
        size=parameters.size,
        name=parameters.name,
        changes=_changes(parameters),
    )
    if parameters.recipe is not None:
        note_misfit(recipe.kind, labels)
    store = open_store(parameters.output)
    share = parameters.validation
    if share is None:
        share = recipe.validation if len(labels) >= LEAST_TO_DIVIDE else 0.0
    labels, held_out = divided(labels, share, parameters)
    labelled_set = save_training_set(store, examples_of_labels(labels.table.to_pylist()))
    validation_set = None
    if held_out is not None:
        validation_set = validation_key(held_out.label_set_id)
        write_stored(held_out, store, validation_set)
    return prepare_training(
        parameters.output,
        recipe,
        labelled_set,
        num_workers=parameters.workers,
        use_gpu=parameters.gpus,
        validation_set=validation_set,
        file_ids=labels.file_ids,
    )


def divided(labels: LabelSet, share: float, parameters: TrainParameters) -> tuple[LabelSet, LabelSet | None]:
    """What is learnt from, and about a share to be judged by on the way; groups and near-duplicates stay together.

    Where there are fewer groups than that takes, as of one video, nothing is held out.

    Raises:
        DatasetError: and it was asked for.
    """
    if not share:
        return labels, None
    joined, folds = in_groups(labels, parameters), max(2, round(1 / share))
    if parameters.validation is None and len(set(joined.table["group_id"].to_pylist())) < folds:
        return labels, None
    held_out = set(fold_groups(joined, folds, salt=str(parameters.seed))[0])
    learnt = set(labels.table["image_id"].to_pylist()) - held_out
    return labels.only(learnt), labels.only(held_out)


def _changes(parameters: TrainParameters) -> dict[str, Any]:
    given = {
        "batch_size": parameters.batch_size,
        "initial": parameters.initial,
        "frozen": parameters.freeze or None,
        "rate_scales": parameters.rate_scales or None,
        "teacher": parameters.teacher,
        "validate_every": parameters.validate_every,
        "patience": parameters.patience,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if parameters.teacher is not None:
        changes["distillation"] = {"alpha": parameters.alpha, "temperature": parameters.temperature}
    return changes


def carry_out(job: TrainingJob, ray: str | None, logs: Sequence[LogTarget] = ()) -> tuple[str, Weights]:
    """Train where it was asked for: on a local Ray, on a cluster, or ("none") in this process.

    The page with the curves is written meanwhile; people are told where it is, and other ``logs`` get figures, too.
    """
    curves = open_store(job.output_uri).uri_of(curves_key(job.fingerprint))
    note(f"curves of {job.recipe.name}: {curves}")
    page.log("curves of %s: %s", job.recipe.name, curves)
    if ray == SERIAL:
        return train_here(job, (CURVES, *logs))
    tell("starting Ray" if ray is None else "joining the Ray cluster")
    with ray_session(ray) as session:
        return train_on_ray(job, session, (CURVES, *logs))


def _evaluate(model: str, held_out: LabelSet, parameters: TrainParameters) -> Judgement:
    return evaluate_model(model, held_out, device=own_device(parameters.gpus))


def _summary(job: TrainingJob, uri: str, record: Weights, judged: Judgement | None, seconds: float) -> Summary:
    return {
        "weights": uri,
        "curves": open_store(job.output_uri).uri_of(curves_key(job.fingerprint)),
        "model": record.reference,
        "kind": record.lineage["kind"],
        "initial": record.lineage["initial"],
        "fingerprint": job.fingerprint,
        "training_set": job.labelled_set,
        "parameters": record.num_parameters,
        "steps": record.lineage["steps"],
        "skipped_steps": record.lineage["skipped_steps"],
        "validation": record.lineage.get("validation"),
        "final": record.lineage["history"][-1] if record.lineage["history"] else {},
        "history": record.lineage["history"],
        "metrics": None if judged is None else to_json(judged),
        "seconds": round(seconds, 3),
        "exit_code": 0,
    }
