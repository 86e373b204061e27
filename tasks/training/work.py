"""What one training process does: build the model, train its share from wherever the run is, leave the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.store import Store, open_store
from infra.telling import tell
from modelkit import ClassInfo, VisionModel, create_model, load, load_weights, save_weights
from modelkit.training.auxiliary import AuxiliaryHead
from modelkit.training.distillation import Distiller
from modelkit.training.loop import Trainer, seed_step
from modelkit.training.processes import Rank
from modelkit.training.student import ModelLosses, StudentTraining, weighted_losses
from modelkit.training.transfer import IMAGENET, Adopted, adopt, freeze, imagenet_state, untaught
from tasks.engine.model_source import local_model
from tasks.engine.prepare import environment
from tasks.training.checkpoints import StoreCheckpoints
from tasks.training.examples import load_training_set
from tasks.training.job import TrainingJob, finished_weights
from tasks.training.layout import best_key, checkpoint_key, weights_keys
from tasks.training.loading import Batch, Batches, ExampleReader
from tasks.training.reporting import Reporter, logged_run
from tasks.training.run_log import LogTarget, RunLogs, logs_of
from tasks.training.validation import Validation, as_used

HISTORY_POINTS = 100
_BUILD_STEP = 0xFFFF


def train_share(job: TrainingJob, rank: Rank, until: int | None = None, *, logs: Sequence[LogTarget] = ()) -> None:
    """Train one process's share up to the end; the first process writes checkpoints and, at the end, the weights.

    A run that is done already is left alone. Stopped at any moment and called again it ends with the same bits.

    Args:
        job: what to train.
        rank: which process this is.
        until: stop after so many steps in all, without leaving weights.
        logs: what hears its figures meanwhile.

    Raises:
        UsageError: a log that cannot be opened.
        DatasetError: an image that cannot be read.
        TrainingDivergedError: the loss is not finite for too long.
        CheckpointError: a damaged checkpoint.
    """
    store = open_store(job.output_uri)
    if finished_weights(store, job) is not None:
        return
    with _threads_of(job):
        _train(job, store, rank, until, logs)


@contextmanager
def _threads_of(job: TrainingJob) -> Iterator[None]:
    """One thread on processors, or sums would depend on their number; two processes of one thread are faster anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if job.device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(job: TrainingJob, store: Store, rank: Rank, until: int | None, targets: Sequence[LogTarget]) -> None:
    tell("building the model, reading what it begins from")
    model, adopted = build_model(job)
    anew = untaught(model, job.recipe.frozen, adopted)
    if anew:
        tell(f"learnt although the recipe freezes them, for they begin anew: {', '.join(anew)}")
    freeze(model, [part for part in job.recipe.frozen if part not in anew])
    module = StudentTraining(
        model, job.recipe.schedule, job.recipe.loop.steps, losses=_losses_of(job, model), rank=rank
    ).to(job.device)
    if job.device == "cpu":
        # Convolutions run faster this way there: steps of a Mask R-CNN at 96 px took 8 to 14 % less time.
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = _batches(job, store, model, rank)
    trainer = Trainer(
        module,
        lambda step: _losses(module, batches, step, job.device),
        job.recipe.loop,
        checkpoints=StoreCheckpoints(store, checkpoint_key(job.fingerprint)),
        fingerprint=job.fingerprint,
        rank=rank,
        rate_scales={f"student.{prefix}": scale for prefix, scale in job.recipe.rate_scales.items()},
    )
    validation = None if job.validation_set is None else Validation(job, store, trainer)

    try:
        with logs_of(targets if rank.is_first else (), logged_run(job, trainer)) as logs:
            _run(job, trainer, validation, logs, until)
            if rank.is_first and (trainer.step >= job.recipe.loop.steps or trainer.ended_early):
                _leave(job, store, trainer, adopted, validation)
                logs.finished()
    finally:
        batches.close()
    rank.wait()


def _run(job: TrainingJob, trainer: Trainer, validation: Validation | None, logs: RunLogs, until: int | None) -> None:
    """Train on, with a word after every step and a look at what is held out where one is due."""
    reporter = Reporter(job, trainer, logs)

    def report(trainer: Trainer, values: dict[str, float]) -> None:
        _remember(trainer, values)
        reporter.step(values)
        if validation is not None and validation.is_due():
            validation.look(_student_of(trainer))
            reporter.look()

    trainer.run(until=until, report=report)


def _student_of(trainer: Trainer) -> VisionModel:
    """The averaged student."""
    average = trainer.ema.model
    assert isinstance(average, StudentTraining)  # what _train made
    return average.student


def build_model(job: TrainingJob) -> tuple[VisionModel, Adopted | None]:
    """The model as every process begins with it: seeded, then with what fits of the initial weights."""
    seed_step(job.recipe.loop.seed, _BUILD_STEP, 0)
    model = create_model(job.recipe.architecture, **job.recipe.config)
    if job.recipe.initial is None:
        return model, None
    return model, adopt(model, initial_state(model, job.recipe.initial), tuple(job.recipe.initial_parts))


def initial_state(model: VisionModel, weights: str) -> dict[str, Tensor]:
    """What a model begins from: the state of weights by name, file or URI, or what ImageNet taught its backbone."""
    return imagenet_state(model) if weights == IMAGENET else _trained(weights).state_dict()


def _trained(weights: str) -> VisionModel:
    """A trained model by name, file or URI."""
    return load(local_model(weights)).model


def _losses_of(job: TrainingJob, model: VisionModel) -> ModelLosses:
    if job.recipe.auxiliary is not None:
        return AuxiliaryHead(model, job.recipe.auxiliary)
    if job.recipe.teacher is None:
        return weighted_losses
    distiller = Distiller(_trained(job.recipe.teacher).to(job.device), job.recipe.distillation)
    distiller.check(model)
    return distiller


def _batches(job: TrainingJob, store: Store, model: VisionModel, rank: Rank) -> Batches:
    labelled = load_training_set(store, job.labelled_set)
    unlabelled = [] if job.unlabelled_set is None else load_training_set(store, job.unlabelled_set)
    return Batches(ExampleReader(model, job.recipe.kind), labelled, unlabelled, job.recipe, rank)


def _losses(module: StudentTraining, batches: Batches, step: int, device: str) -> dict[str, Tensor]:
    batch = batches.batch(step, module.uses_unlabelled)
    return module.losses(step, _on(batch.labelled, device), _on(batch.unlabelled, device))


def _on(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    images, targets = batch
    moved = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()} for target in targets]
    return [image.to(device) for image in images], moved


def _remember(trainer: Trainer, values: dict[str, float]) -> None:
    """The curve: about a hundred points of a run, as they are at that step."""
    every = max(1, trainer.config.steps // HISTORY_POINTS)
    if trainer.step % every == 0 or trainer.step == trainer.config.steps:
        trainer.history.append({"step": trainer.step, **{name: round(value, 6) for name, value in values.items()}})


def _leave(
    job: TrainingJob, store: Store, trainer: Trainer, adopted: Adopted | None, validation: Validation | None
) -> None:
    """Write the averaged student (the best one that was looked at) and its record.

    Tensors come first; the record's presence says that both are whole.
    """
    student = _student_of(trainer)
    if validation is not None:
        student.load_state_dict(validation.best_state())
    tensors, record = weights_keys(job.fingerprint, job.recipe.name)
    with tempfile.TemporaryDirectory(prefix="visionmill-weights-") as folder:
        save_weights(
            as_used(job.recipe, student.cpu()),
            folder,
            name=job.recipe.name,
            classes=[ClassInfo(label, name, thing) for label, name, thing in job.recipe.classes],
            lineage=_lineage(job, trainer, adopted, validation),
            **job.recipe.recorded(),
        )
        load_weights(Path(folder))  # what cannot be read back is not published
        for key in (tensors, record):
            store.put(key, (Path(folder) / key.rpartition("/")[2]).read_bytes())
    for key in (checkpoint_key(job.fingerprint), best_key(job.fingerprint)):
        store.delete(key)


def _lineage(
    job: TrainingJob, trainer: Trainer, adopted: Adopted | None, validation: Validation | None
) -> dict[str, Any]:
    recipe = job.recipe
    taken = None if adopted is None else {"weights": recipe.initial, **adopted.to_json()}
    return {
        "kind": "distilled" if recipe.teacher else "transferred" if recipe.initial else "trained",
        "recipe": recipe.to_json(),
        "fingerprint": job.fingerprint,
        "labelled_set": job.labelled_set,
        "unlabelled_set": job.unlabelled_set,
        "initial": taken,
        "steps": trainer.step,
        "skipped_steps": trainer.skipped,
        "labelled_images": trainer.step * recipe.batch_size * job.num_workers,
        "training_seconds": round(trainer.seconds, 1),
        "num_workers": job.num_workers,
        "environment": environment(),
        **({"file_ids": dict(job.file_ids)} if job.file_ids else {}),
        "history": trainer.history,
        **({} if validation is None else {"validation": validation.record}),
    }
