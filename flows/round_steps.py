"""The steps of a round, one function each; every one leaves objects that are named by their content."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from rich.console import Console

from flows.job import run_job
from flows.labels import labels_named
from flows.parameters import RetrainParameters
from flows.problems import checked
from flows.steps import Steps
from flows.train import carry_out
from flows.work import own_device
from infra.errors import UsageError
from infra.store import Store, open_store
from modelkit import ClassInfo, Predictor, Weights
from tasks.labels.label_sets import LabelSet
from tasks.loop import champion as champions
from tasks.loop.audits import audit_of, audit_table
from tasks.loop.candidates import RoundCandidates, Teacher, read_candidates
from tasks.loop.data import LoopData
from tasks.loop.gate import Audit, GateLimits
from tasks.loop.heartbeats import prediction_entropy
from tasks.loop.judging import Worth, load_predictor, worth_of
from tasks.loop.loop_tasks import DEFAULT_RECIPES, LoopTask, Whose, loop_task
from tasks.loop.records import remember_model, teacher_of
from tasks.loop.round_calibration import RoundCalibration
from tasks.loop.schemas import AUDITS, CALIBRATORS, PSEUDO_IMAGES, PSEUDO_LABELS, THRESHOLD_SETS
from tasks.loop.selection import Selection, select
from tasks.loop.thresholds import ThresholdSet
from tasks.output import tables
from tasks.output.layout import canonical_json
from tasks.product import find_kind, find_product
from tasks.training.examples import examples_of_labels, save_training_set
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.presets import make_recipe
from tasks.training.recipe import TrainingRecipe


@dataclass(frozen=True, slots=True)
class Loop:
    """What all rounds share.

    Args:
        parameters: what was asked for.
        store: the output.
        data: who is L, C, G, T and U.
        task: what it teaches.
        run_id: names the loop.
        step: calls a step.
        console: for the progress of inference.
    """

    parameters: RetrainParameters
    store: Store
    data: LoopData
    task: LoopTask
    run_id: str
    step: Steps
    console: Console | None

    def predictor(self, weights_uri: str) -> Predictor:
        """A model of the loop; where GPUs are asked for and this process can reach one, on it."""
        return load_predictor(weights_uri, own_device(self.parameters.gpus))

    @property
    def calibrating(self) -> LabelSet:
        """The labels that decide thresholds: C; with cross-fitting L, each item looked at by a model without it."""
        return self.data.split("L" if self.parameters.crossfit else "C")

    @property
    def limits(self) -> GateLimits:
        """Of the gate; the level is divided over the rounds that may be."""
        return GateLimits(max_rounds=self.parameters.max_rounds, min_gain=self.parameters.min_gain)


def recipe_for(asked: RetrainParameters, classes: Sequence[ClassInfo], *, role: str) -> TrainingRecipe:
    """Every model of a loop has the same recipe, steps and noise; they differ by name."""
    recipe = make_recipe(
        asked.recipe or DEFAULT_RECIPES[asked.task], classes, steps=asked.steps, seed=asked.seed, name=role,
        changes={} if asked.initial is None else {"initial": asked.initial},
    )  # fmt: skip
    # Round 0 and the baseline get the student's noise, too: otherwise the gain would be the augmentation's.
    return dataclasses.replace(recipe, labelled=recipe.unlabelled)


def task_for(asked: RetrainParameters, classes: Sequence[ClassInfo]) -> LoopTask:
    """What the loop teaches; refuses a recipe whose model does something else."""
    if asked.task not in DEFAULT_RECIPES:
        raise UsageError(f"the loop does not teach {asked.task} models", hint=f"--task {' | '.join(DEFAULT_RECIPES)}")
    recipe = recipe_for(asked, classes, role="teacher")
    return loop_task(asked.task, recipe, recipe.kind, asked.tta)


def train_supervised(loop: Loop, labels: LabelSet, *, role: str) -> tuple[str, Weights]:
    """A model of round 0, remembered: the first teacher, a baseline, or a fold's."""
    job = job_for(loop, labels, role=role)
    uri, record = carry_out(job, loop.parameters.ray)
    remember_model(
        loop.store, job, uri, record, loop.data, role=role.partition("-")[0], run_id=loop.run_id, round_number=0
    )
    return uri, record


def job_for(loop: Loop, labels: LabelSet, *, role: str, pseudo: str | None = None) -> TrainingJob:
    """The training of a model of the loop; only the labels differ."""
    asked = loop.parameters
    recipe = recipe_for(asked, loop.data.labels.classes, role=role)
    labelled = save_training_set(loop.store, examples_of_labels(labels.table.to_pylist()))
    return prepare_training(
        loop.store.uri,
        recipe,
        labelled,
        pseudo,
        num_workers=asked.workers,
        use_gpu=asked.gpus,
        file_ids=loop.data.labels.file_ids,
    )


def infer(loop: Loop, champion: champions.Model) -> None:
    """The champion over the whole unlabelled source, as in any job of its kind's product."""
    product = find_product(find_kind(loop.parameters.task).product)
    asked = checked(
        product.parameters,
        source=loop.parameters.unlabelled,
        output=_inference_uri(loop, champion),
        model=champion.weights_uri,
        score_threshold=loop.task.score_floor,
        ray=loop.parameters.ray,
        # A cluster's GPUs are only taken if asked for; those of this machine are shared by default.
        gpus_per_worker=1.0 if loop.parameters.gpus and loop.parameters.ray is not None else None,
        frame_stride=loop.parameters.frame_stride,
        report=False,
    )
    run_job(
        product,
        asked,
        orchestrated=False,  # a step of this flow already
        console=loop.console,
        predictor=loop.task.predictor_spec,
    )


def _inference_uri(loop: Loop, champion: champions.Model) -> str:
    """One output for each way to look: a later loop may show the same champion other views, or other frames."""
    predictor = loop.task.predictor_spec
    way = canonical_json([None if predictor is None else predictor.to_json(), loop.parameters.frame_stride])
    return loop.store.uri_of(f"inference/{champion.weights_sha256[:16]}-{hashlib.sha256(way).hexdigest()[:8]}")


def read_round_candidates(loop: Loop, champion: champions.Model, teacher: Teacher, number: int) -> RoundCandidates:
    return read_candidates(
        open_store(_inference_uri(loop, champion)),
        loop.data.items,
        teacher=teacher,
        run_id=loop.run_id,
        round_number=number,
        task=loop.task.name,
        score_floor=loop.task.score_floor,
    )


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the teacher's candidates on C decided, and how much doubt there was in them (bits, None without any)."""

    by: RoundCalibration
    thresholds: ThresholdSet
    entropy: float | None


def calibrate(loop: Loop, teacher: Teacher, mine: pa.Table, found: RoundCandidates, number: int) -> Calibrated:
    """Thresholds from held-out candidates (see :mod:`flows.held_out`)."""
    asked = loop.parameters
    by = Whose(
        teacher.teacher_model_id, number, loop.data.manifest.manifest_sha256, seed=asked.seed, precision=asked.precision
    )
    calibrated = loop.task.calibrate(mine, loop.calibrating, loop.data.split("L"), by)
    thresholds = loop.task.banded(calibrated.thresholds, found)
    tables.append(loop.store, THRESHOLD_SETS, thresholds.to_table())
    tables.append(loop.store, CALIBRATORS, calibrated.scores.to_table(teacher.teacher_model_id))
    return Calibrated(calibrated, thresholds, prediction_entropy(mine))


def decide_candidates(
    loop: Loop,
    found: RoundCandidates,
    calibrated: RoundCalibration,
    thresholds: ThresholdSet,
    previous: pa.Table | None,
) -> Selection:
    selection = select(
        found.candidates,
        found.images,
        thresholds=thresholds,
        scores=calibrated.scores,
        quality=calibrated.quality,
        previous=previous,
    )
    number = thresholds.round
    tables.append(loop.store, PSEUDO_LABELS, selection.labels, round_number=number, task=loop.task.name)
    tables.append(loop.store, PSEUDO_IMAGES, selection.images, round_number=number, task=loop.task.name)
    return selection


def train_student(loop: Loop, selection: Selection) -> tuple[TrainingJob, str, Weights]:
    """From a fresh start on L and what was accepted; the teacher's weights would keep its mistakes."""
    examples = loop.task.examples(selection.labels)
    pseudo = save_training_set(loop.store, examples) if selection.accepted.num_rows else None
    job = job_for(loop, loop.data.split("L"), role="student", pseudo=pseudo)
    uri, record = carry_out(job, loop.parameters.ray)
    return job, uri, record


def train_baseline(loop: Loop) -> str:
    """The supervised model of the same budget, on every label the loop used, those of C included."""
    both = pa.concat_tables([loop.data.split(name).table for name in ("L", "C")])
    uri, _ = train_supervised(loop, dataclasses.replace(loop.data.labels, table=both), role="baseline")
    return uri


@dataclass(frozen=True, slots=True)
class Measured:
    """The three models of a round on G."""

    champion: Worth
    candidate: Worth
    baseline: Worth


def measure(loop: Loop, number: int, champion: str, candidate: str, baseline: str) -> Measured:
    gate = loop.data.split("G")
    calibration = None if loop.parameters.crossfit else loop.data.split("C")  # the candidate has learnt from all of L
    worths = []
    for uri in (champion, candidate, baseline):
        predictor = loop.predictor(uri)
        teacher = teacher_of(predictor.weights, loop.data, round_number=number, tta_spec=loop.task.tta_spec)
        worths.append(
            worth_of(loop.task, predictor, teacher, calibration, gate, run_id=loop.run_id, round_number=number)
        )
    return Measured(*worths)


def audit_accepted(loop: Loop, selection: Selection, thresholds: ThresholdSet, set_id: str) -> Audit | None:
    """What people (or hidden truth) say about a sample of the accepted labels; None while nobody has looked."""
    if loop.parameters.audit is None or selection.accepted.num_rows == 0:
        return None
    truth = labels_named(loop.parameters.audit, loop.parameters, loop.data.labels.classes)
    known = set(truth.table["image_id"].to_pylist())
    accepted = selection.accepted.filter(
        pa.array([image_id in known for image_id in selection.accepted["image_id"].to_pylist()])
    )
    looked = loop.task.look_at(
        accepted, truth.only(accepted["image_id"].to_pylist()), loop.parameters.audit_labels, seed=loop.parameters.seed
    )
    if looked:
        tables.append(
            loop.store, AUDITS, audit_table(accepted, looked, train_set_id=set_id, reviewers=[loop.parameters.audit])
        )
    return audit_of(accepted, looked, thresholds)
