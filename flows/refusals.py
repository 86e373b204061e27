"""What is wrong with a job and known from a look: told before Prefect or Ray is imported, or anything started."""

from __future__ import annotations

from infra.errors import UsageError
from infra.machine import may_have_gpu
from infra.store import open_store
from tasks.engine.prepare import check_options, describe_model
from tasks.ingest.sources import find_source
from tasks.loop.champion import in_use
from tasks.output.lease import refuse_if_held
from tasks.parameters import JobParameters
from tasks.product import Product


def refuse_at_once(product: Product, parameters: JobParameters, *, is_tried: bool) -> None:
    """Look at model, options, source and output.

    Args:
        is_tried: whether the output is tried out by writing to it; a dry run writes nothing.

    Raises:
        UsageError: options that exclude each other; an unknown model.
        DatasetError: the source does not exist.
        LeaseHeld: another driver of this machine writes the output.
        StoreError: source or output cannot be reached, or the output not be written.
    """
    model = in_use(parameters.model)
    check_options(product, parameters, describe_model(model, parameters.weights, product))
    check_workers(parameters)
    _check_gpus(parameters)
    find_source(parameters.source)
    if is_tried:
        output = open_store(parameters.output)
        output.probe()
        refuse_if_held(output)


def check_workers(parameters: JobParameters) -> None:
    """Raises a UsageError where this process is to be several workers."""
    if parameters.ray == "none" and parameters.workers not in ("auto", 1):
        raise UsageError("--ray none runs one worker in this process", hint="leave out --workers, or leave out --ray")


def _check_gpus(parameters: JobParameters) -> None:
    """Raises a UsageError where this machine is to have a GPU that it lacks."""
    if parameters.gpus_per_worker and parameters.ray in (None, "none") and not may_have_gpu():
        raise UsageError(
            f"--gpus-per-worker {parameters.gpus_per_worker:g}, and this machine has no GPU that torch could use",
            hint="leave it out to compute on the processors, or name a cluster that has some: --ray ADDRESS",
        )
