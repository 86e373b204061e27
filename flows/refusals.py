"""What is wrong with a command and known from a look: told before torch, Prefect or Ray is imported.

Each command has its function here; it costs about a second and opens nothing that is large.
"""

from __future__ import annotations

import os

from flows.loop_parameters import RetrainParameters
from flows.parameters import LabelParameters, TrainParameters
from infra.errors import UsageError
from infra.machine import may_have_gpu
from infra.store import Store, is_local, open_store
from tasks.engine.prepare import check_options, describe_model
from tasks.ingest.sources import find_source
from tasks.labels.reading import find_labels
from tasks.loop.champion import in_use
from tasks.loop.schemas import ROUNDS
from tasks.output.lease import refuse_if_held
from tasks.output.listing import held_products, product_in
from tasks.output.tables import list_tables
from tasks.parameters import JobParameters
from tasks.product import Product
from tasks.report.judged_place import place_of_page, refuse_other_page


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
    check_workers(parameters)
    _check_gpus(parameters)
    find_source(parameters.source)
    _refuse_no_folder(parameters.images_root)
    model = in_use(parameters.model)
    check_options(product, parameters, describe_model(model, parameters.weights, product))  # late: it may download
    if is_tried:
        refuse_if_held(_tried(parameters.output))


def refuse_labels(parameters: LabelParameters, *labelled: str | None) -> None:
    """Look for files or folders of labels, their classes, and where their images are said to lie.

    Raises:
        DatasetError: labels, classes or images are not there, or are nothing that can be read as such.
        StoreError: they cannot be reached.
    """
    for uri in filter(None, labelled):
        find_labels(uri, classes=parameters.classes)
    _refuse_no_folder(parameters.images_root)


def refuse_page(where: str | None) -> None:
    """Look whether a page about a judged model can be written where it is to lie.

    Raises:
        UsageError: something else lies there.
        StoreError: nothing can be written there.
    """
    if where is not None:
        store, key = place_of_page(where)
        refuse_other_page(_tried(store.uri), key)


def refuse_training(parameters: TrainParameters) -> None:
    """Look at labels, the weights that a training begins from or learns from, and the output; raises as the others."""
    refuse_labels(parameters, parameters.labelled, parameters.evaluate)
    for model in filter(None, (parameters.initial, parameters.teacher)):
        if model != "imagenet":
            describe_model(model, None)
    _tried(parameters.output)


def refuse_loop(parameters: RetrainParameters, *, is_tried: bool) -> None:
    """Look at labels, unlabelled images, first weights and the output of a loop; raises as the others."""
    refuse_labels(parameters, parameters.labelled)
    find_source(parameters.unlabelled)
    for model in filter(None, (parameters.initial, parameters.detector)):
        if model != "imagenet":
            describe_model(model, None)
    if is_tried:
        refuse_if_held(_tried(parameters.output))


def refuse_no_results(output: str, product: str | None) -> None:
    """Raises UsageError where neither a job nor a loop has left anything; StoreError where nobody can tell."""
    store = open_store(output)
    if product is not None or not (held_products(store) or list_tables(store).get(ROUNDS.name)):
        product_in(store, product)


def _tried(output: str) -> Store:
    """The store of an output that can be written to."""
    if is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
        raise UsageError(f"the output {output} is a file", hint="name a folder; it is made if it is not there")
    store = open_store(output)
    store.probe()
    return store


def _refuse_no_folder(images_root: str | None) -> None:
    if images_root is not None:
        next(iter(open_store(images_root).list("")), None)


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
