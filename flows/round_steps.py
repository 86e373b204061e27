"""What a round starts elsewhere: inference by the engine of ``visionmill segment``, and training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pyarrow as pa
from rich.console import Console

from flows.job import run_job
from flows.labels import labels_named
from flows.loop_parameters import RetrainParameters
from flows.steps import Steps
from flows.train import carry_out
from infra.errors import VisionmillError
from infra.problems import checked
from modelkit import Weights
from tasks.labels.label_sets import LabelSet, of_people
from tasks.loop.champion import Model
from tasks.loop.gate import Audit
from tasks.loop.loops import Loop, job_for
from tasks.loop.records import remember_model
from tasks.loop.rounds import audit_accepted
from tasks.loop.selection import Selection
from tasks.loop.split_names import CALIBRATION, TRAIN
from tasks.loop.thresholds import ThresholdSet
from tasks.product import find_kind, find_product
from tasks.training.run_log import LogTarget, log_target


@dataclass(frozen=True, slots=True)
class Running:
    """A loop under way.

    Args:
        parameters: what was asked for.
        loop: it.
        step: carries out its steps.
        console: for the progress of inference.
    """

    parameters: RetrainParameters
    loop: Loop
    step: Steps
    console: Console | None

    @property
    def logs(self) -> list[LogTarget]:
        """Where trainings log figures beside their own pages of curves."""
        return [log_target(spec) for spec in self.parameters.log]


def train_supervised(running: Running, labels: LabelSet, *, role: str) -> tuple[str, Weights]:
    """A model of round 0, remembered: the first teacher, a baseline, or a fold's."""
    loop = running.loop
    job = job_for(loop, labels, role=role)
    uri, record = carry_out(job, running.parameters.ray, running.logs)
    remember_model(
        loop.store, job, uri, record, loop.data, role=role.partition("-")[0], run_id=loop.run_id, round_number=0
    )
    return uri, record


def infer(running: Running, champion: Model) -> None:
    """The champion over the whole unlabelled source, as in any job of its kind's product."""
    asked, loop = running.parameters, running.loop
    product = find_product(find_kind(loop.kind).product)
    parameters = checked(
        product.parameters,
        source=asked.unlabelled,
        output=loop.inference_uri(champion),
        model=champion.weights_uri,
        score_threshold=loop.methods.score_floor,
        ray=asked.ray,
        # A cluster's GPUs are only taken if asked for; those of this machine are shared by default.
        gpus_per_worker=1.0 if asked.gpus and asked.ray is not None else None,
        frame_stride=asked.frame_stride,
        report=False,
        **loop.looks,
    )
    run_job(
        product,
        parameters,
        orchestrated=False,  # a step of this flow already
        console=running.console,
        predictor=loop.methods.predictor_spec,
    )


def train_baseline(running: Running) -> str:
    """The supervised model of the same budget, on every label the loop used, those that calibrate included."""
    data = running.loop.data
    both = pa.concat_tables([data.split(name).table for name in (TRAIN, CALIBRATION)])
    uri, _ = train_supervised(running, dataclasses.replace(data.labels, table=both), role="baseline")
    return uri


def audit(running: Running, selection: Selection, thresholds: ThresholdSet, set_id: str) -> Audit | None:
    """What people (or hidden truth) say about a sample of the accepted labels; None while nobody has looked."""
    asked, loop = running.parameters, running.loop
    if asked.audit is None:
        return None
    truth = of_people(labels_named(asked.audit, asked, loop.data.labels.classes))
    return audit_accepted(loop, selection, thresholds, set_id, truth)


def report_round(loop: Loop) -> str | None:
    """Write the page of the newest round and the list of rounds; the list's address.

    A report that can't be written is no reason to call the round failed: ``visionmill report`` writes it again.
    """
    from tasks.report.round_page import write_loop_report  # draws pictures: loaded only when there is something to draw

    try:
        return write_loop_report(loop.store.uri, last_only=True).index_uri
    except VisionmillError:
        return None
