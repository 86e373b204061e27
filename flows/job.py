"""A whole dataset through a model: the steps in the order in which the data meets them, one call each.

One body for every product. It runs as a Prefect flow (scheduled, triggered, recorded) and as plain Python; see
:mod:`flows.steps`. A product's flow is called after its verb (``segment-dataset``), and so is what deployments find
here: ``flows/job.py:segment_dataset``.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from pathlib import Path

from prefect import Flow, flow
from rich.console import Console

from flows import page
from flows.progress import progress_shown
from flows.recording import prepare_recording, without_secrets
from flows.steps import Steps, orchestrated_steps, plain_steps
from flows.summary import Report, Summary, nothing_to_do, summary_of, words_of_job
from flows.work import carry_out, expected_slots, needs_of
from infra.errors import StoreError, VisionmillError
from tasks.engine.job import JobSpec, PredictorSpec
from tasks.engine.pool_outcome import PoolOutcome
from tasks.engine.prepare import PreparedJob, environment, prepare_job, summary_of_weights
from tasks.ingest.inventory import Inventory, take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.loop.champion import in_use
from tasks.output.files import sweep_files
from tasks.output.finish import RunFacts, finish_run
from tasks.output.lease import hold_lease
from tasks.output.runs import RunRecord, new_run_id, report_is_current
from tasks.parameters import MIN_SCORE, JobParameters
from tasks.product import Product, products

_FLOW = "_dataset"


def run_job(
    product: Product,
    parameters: JobParameters,
    *,
    orchestrated: bool = True,
    console: Console | None = None,
    predictor: PredictorSpec | None = None,
) -> Summary:
    """Carry the job out from here, recorded by the standing Prefect server (started if needed) or by nobody.

    Args:
        product: what the job writes.
        parameters: what to do; an instance of the product's ``parameters``.
        orchestrated: whether Prefect records the run; the results are the same.
        console: where the progress bar is drawn; None draws none.
        predictor: another one than ``modelkit.load`` makes; for callers within a flow of their own.

    Returns:
        The summary of ``flows.summary``: plain JSON, no secrets.

    Raises:
        VisionmillError: as the steps do; what is committed by then stays, and the same call goes on from there.
    """
    with progress_shown(console):
        if not orchestrated:
            return _carry_out(product, parameters, plain_steps, predictor)
        prepare_recording()
        summary: Summary = flow_of(product)(parameters)
        return summary


def flow_of(product: Product) -> Flow[[JobParameters], Summary]:
    """The product's Prefect flow; Prefect's page offers the fields of its parameters."""

    def carry_out_job(parameters: JobParameters) -> Summary:
        with without_secrets(), page.run_shown([product.name, f"model: {page.short(parameters.model)}"]):
            summary = _carry_out(product, parameters, orchestrated_steps)
            return page.completed(words_of_job(summary), summary)  # type: ignore[return-value]  # Prefect gives its data

    carry_out_job.__name__ = carry_out_job.__qualname__ = f"{product.verb}{_FLOW}"
    carry_out_job.__annotations__["parameters"] = product.parameters
    carry_out_job.__doc__ = (
        f"{product.verb.capitalize()} what is new or changed in a dataset. A run that finds nothing new ends at once."
    )

    def name_of(parameters: JobParameters) -> str:
        return f"{product.verb} {page.short(parameters.source)} into {page.short(parameters.output)}"

    called = page.called(name_of)
    return flow(name=f"{product.verb}-dataset", flow_run_name=called, persist_result=False)(carry_out_job)


def __getattr__(name: str) -> Flow[[JobParameters], Summary]:
    """The flow of each product under the name of its function: what a deployment's entrypoint names."""
    for product in products().values():
        if name == f"{product.verb}{_FLOW}":
            return flow_of(product)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _carry_out(
    product: Product,
    parameters: JobParameters,
    step: Steps,
    predictor: PredictorSpec | None = None,
) -> Summary:
    run_id, started_at, began = new_run_id(), dt.datetime.now(dt.UTC), time.monotonic()
    parameters = with_champion(parameters)
    needs = needs_of(parameters)
    prepared = step(
        "prepare job", prepare_job, product, parameters, run_id=run_id, device=needs.device, predictor=predictor
    )
    with hold_lease(prepared.output, run_id) as lease, tempfile.TemporaryDirectory(prefix="visionmill-") as folder:
        if product.sink is not None:
            step("sweep files", sweep_files, prepared.output, prepared.version)
        inventory = step(
            "take inventory",
            take_inventory,
            parameters.source,
            folder=Path(folder),
            images_root=parameters.images_root,
            follow_links=parameters.follow_links,
        )
        page.log("%s: %d objects, %d bytes%s", parameters.source, inventory.num_objects, inventory.total_bytes,
                 "".join(f"; left out: {count} x {reason}" for reason, count in inventory.skipped.items()))  # fmt: skip
        plan = step("open plan", _open_plan, parameters, prepared, inventory, slots=expected_slots(needs))
        if plan is None:
            is_due = parameters.report and not report_is_current(prepared.output)
            report = step("write report", _report, prepared) if is_due else Report()
            return nothing_to_do(prepared, inventory, time.monotonic() - began, report)
        page.log("%s plan %d: %d shards", "joined" if plan.joined else "opened", plan.number, plan.num_shards)
        prepared, outcome = step("carry out plan", carry_out, plan, prepared, needs, refusal=lease.lost_to)
        page.log("%d ok, %d failed, %d quarantined in %d shards", outcome.ok, outcome.failed, outcome.quarantined,
                 outcome.shards_committed)  # fmt: skip
        facts = _facts(parameters, prepared, inventory, plan, run_id, started_at)
        try:
            record = step("finish run", _finish, prepared, facts, plan, outcome)
        except VisionmillError as error:
            if outcome.error is None:
                raise
            raise outcome.error from error  # a store that takes no record any more must not hide why
        # Who stops a run does not wait for pictures, and a store that ended it takes none.
        wants_report = parameters.report and not outcome.drained and not isinstance(outcome.error, StoreError)
        report = step("write report", _report, prepared) if wants_report else Report()
        summary = summary_of(prepared, inventory, record, report)
        if step is orchestrated_steps and not outcome.drained:  # likewise
            page.show_job(product, summary)
    if outcome.error is not None:
        raise outcome.error
    return summary


def with_champion(parameters: JobParameters) -> JobParameters:
    """The same job with the weights that its model stands for at this moment, if that is the output of a loop."""
    return parameters.model_copy(update={"model": in_use(parameters.model)})


def plan_options(parameters: JobParameters, job: JobSpec, *, slots: int) -> PlanOptions:
    """How the plan chooses and divides, for so many workers."""
    return PlanOptions(
        shard_items=parameters.shard_items,
        shard_bytes=parameters.shard_bytes,
        video_frames=parameters.shard_items * parameters.frame_stride,
        retry_failed=parameters.retry_failed,
        fresh=parameters.fresh,
        new_version=parameters.new_version,
        limit=parameters.limit,
        slots=slots,
        least_items=4 * job.batch_size,
        cut_videos=not job.carries_state,
    )


def _open_plan(parameters: JobParameters, prepared: PreparedJob, inventory: Inventory, *, slots: int) -> Plan | None:
    options = plan_options(parameters, prepared.job, slots=slots)
    return open_plan(prepared.output, prepared.version, inventory, options)


def _facts(
    parameters: JobParameters,
    prepared: PreparedJob,
    inventory: Inventory,
    plan: Plan,
    run_id: str,
    started_at: dt.datetime,
) -> RunFacts:
    return RunFacts(
        run_id=run_id,
        source=parameters.source,
        output=prepared.output.uri,
        version=prepared.version,
        started_at=started_at,
        plan=plan.number,
        plan_joined=plan.joined,
        inventory={
            "objects": inventory.num_objects,
            "bytes": inventory.total_bytes,
            "images": inventory.num_images,
            "videos": inventory.num_videos,
            "problems": inventory.num_problems,
            "skipped": inventory.skipped,
        },
        weights=summary_of_weights(prepared.weights),
        execution=prepared.job.execution or {},
        environment=environment() | {"conditional_create": prepared.capabilities.conditional_create},
    )


def _finish(prepared: PreparedJob, facts: RunFacts, plan: Plan, outcome: PoolOutcome) -> RunRecord:
    return finish_run(
        prepared.output,
        facts,
        outcome=outcome_word(outcome),
        message=_message(plan, outcome),
        shards={
            "planned": plan.num_shards,
            "committed_before": outcome.shards_before,
            "committed_here": outcome.shards_committed,
            "committed_by_a_twin": outcome.already_committed,
        },
        errors=dict(outcome.failures),
        error_sample=tuple(outcome.error_sample),
        stage_seconds=dict(outcome.stage_seconds),
        pool=outcome.to_json(),
        items_per_s=outcome.items_per_s,
    )


def _message(plan: Plan, outcome: PoolOutcome) -> str:
    """Why a run ended early, and what is left of it."""
    if outcome.error is not None or not outcome.drained or outcome.finished:
        return outcome.error.message if outcome.error is not None else ""
    left = outcome.shards_total - outcome.shards_before - outcome.shards_committed - outcome.already_committed
    entries = round(plan.num_entries * left / max(outcome.shards_total, 1))
    what = "images and pieces of videos" if plan.num_entries != plan.num_objects else "objects"
    return (
        f"{left} of {outcome.shards_total} shards are left (about {entries} {what}); "
        "the same command goes on from there"
    )


def outcome_word(outcome: PoolOutcome) -> str:
    """As run records call it."""
    if outcome.finished:
        return "done"
    if outcome.drained:
        return "stopped"
    return "circuit_open" if type(outcome.error).__name__ == "CircuitOpen" else "failed"


def _report(prepared: PreparedJob) -> Report:
    """A report that can't be written is no reason to call the run failed: it is said, and the next run writes it."""
    from tasks.report.report import write_report  # draws pictures: loaded only when there is something to draw

    try:
        written = write_report(prepared.output.uri, product=prepared.version.product, min_score=MIN_SCORE)
    except VisionmillError as error:
        return Report(None, f"the report could not be written, the next run tries again: {error.message}")
    return Report(written.index_uri)
