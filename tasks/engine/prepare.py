"""From what was asked for to what a worker understands: the model's record, the version, the probed output."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, Literal

import psutil

import modelkit
from infra.errors import UsageError
from infra.store import Store, StoreCapabilities, open_store
from tasks.engine.job import DEFAULT_MEMORY_BYTES, JobSpec, PredictorSpec
from tasks.engine.model_source import local_model
from tasks.engine.own_model import is_own_model, own_record
from tasks.output.layout import make_version
from tasks.parameters import JobParameters, LookParameters
from tasks.product import Product, products, stores
from tasks.records import Version

LOOKS = tuple(LookParameters.model_fields)
"""Keywords of ``modelkit.load`` that say how a model looks at images."""


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job whose model is known and whose output can be written to.

    Args:
        job: what workers get.
        weights: the model's record.
        output: where results go.
        capabilities: what the output's store was seen to honour.
    """

    job: JobSpec
    weights: modelkit.Weights
    output: Store
    capabilities: StoreCapabilities

    @property
    def version(self) -> Version:
        """Of the rows that will be made."""
        return self.job.version


def prepare_job(
    product: Product,
    parameters: JobParameters,
    *,
    run_id: str,
    device: Literal["cpu", "cuda"],
    predictor: PredictorSpec | None = None,
    is_tried: bool = True,
) -> PreparedJob:
    """Find the model, fix the version, and try out the output before anything is listed or computed.

    Args:
        product: what the job writes.
        parameters: an instance of its ``parameters``.
        predictor: another one than ``modelkit.load`` makes; part of the version, too. None: the product's own, if any.
        is_tried: whether the output is tried out; a dry run writes nothing, not even that.

    Raises:
        UsageError: an unknown model, weights that do not fit it, a model that finds what the product does not store.
        StoreError: the output can't be written to: missing bucket, wrong credentials, no space.
    """
    decode = parameters.decode_options()
    record = describe_model(parameters.model, parameters.weights, product)
    if predictor is None and product.predictor is not None:
        predictor = product.predictor(parameters)
    if predictor is None and is_own_model(parameters.model):
        factory: str | None = parameters.model
    else:
        factory = None if predictor is None else predictor.factory
    _check_kind(record, product)
    check_options(product, parameters, record)
    version = make_version(
        product.name,
        model=record.reference,
        model_digest=record.rows_digest,
        parameters=decode.version_parameters
        | parameters.row_settings()
        | ({} if predictor is None else {"predictor": predictor.name, **predictor.options}),
        schema=product.schema if predictor is None or predictor.schema is None else predictor.schema,
    )
    store = open_store(parameters.output)
    capabilities = store.probe() if is_tried else StoreCapabilities(True, True)
    job = JobSpec(
        model=parameters.model,
        version=version,
        output_uri=store.uri,
        run_id=run_id,
        device=device,
        batch_size=parameters.batch_size or (1 if device == "cpu" else 8),  # on a CPU larger ones only cost memory
        memory_bytes=parameters.memory_bytes or DEFAULT_MEMORY_BYTES,
        memory_is_limit=parameters.memory_bytes is not None,
        decode=decode,
        model_options=_model_options(product, parameters),
        item_s=None if parameters.item_minutes is None else 60.0 * parameters.item_minutes,
        outage_s=60.0 * parameters.outage_minutes,
        max_consecutive_failures=parameters.max_consecutive_failures,
        carries_state=(predictor is not None and predictor.carries_state)
        or (factory != parameters.model and modelkit.is_video_model(record)),
        driver_commits=not capabilities.conditional_create,
        predictor_factory=factory,
        predictor_options={} if predictor is None else {**predictor.options, **predictor.places},
    )
    return PreparedJob(job, record, store, capabilities)


def check_options(product: Product, parameters: JobParameters, record: modelkit.Weights) -> None:
    """Refuse ways of looking that the model cannot follow, before anything is started.

    Raises:
        UsageError: it has no such limit, its results on tiles cannot be brought together, or it is somebody's function.
    """
    looks = {name: value for name, value in _model_options(product, parameters).items() if name in LOOKS}
    if looks:
        check_looks(parameters.model, record, looks)


def check_looks(model: str, record: modelkit.Weights, looks: Mapping[str, int]) -> None:
    """The same for options of a command that is no job."""
    if is_own_model(model):
        raise UsageError(
            f"{model} is a function of your own: it gets whole images, and options such as "
            f"{', '.join(f'--{name}' for name in looks)} do not reach it",
            hint="leave them out, and do the same in the function: modelkit.load takes them, too",
        )
    try:
        modelkit.check_options(record, **looks)
    except modelkit.ModelkitError as error:
        raise UsageError(str(error), hint=f"leave out {' and '.join(f'--{name}' for name in looks)}") from error


def _model_options(product: Product, parameters: JobParameters) -> dict[str, Any]:
    own = {} if product.options is None else product.options(parameters)
    return own | ({"weights": parameters.weights} if parameters.weights else {})


def _check_kind(record: modelkit.Weights, product: Product) -> None:
    """Refuse a model whose results another product stores."""
    if stores(product, record.kind):
        return
    others = [each.verb for each in products().values() if stores(each, record.kind)]
    raise UsageError(
        f"{record.name} is a model of the kind {record.kind!r}, which `visionmill {product.verb}` does not store"
        f" (it stores {', '.join(product.kinds) or 'none'})",
        hint=f"use `visionmill {others[0]}`" if others else "choose another model",
    )


def describe_model(model: str, weights: str | None, product: Product | None = None) -> modelkit.Weights:
    """The record of the model that is meant, for a product; modelkit's complaints become usage errors."""
    if is_own_model(model):
        return own_record(model, weights, product)
    try:
        return modelkit.describe(local_model(model), weights=None if weights is None else local_model(weights))
    except modelkit.WeightsUnavailableError as error:
        raise UsageError(str(error), hint="then run the same command again, or name another model: --model") from error
    except modelkit.ModelkitError as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models and their weights") from error


def summary_of_weights(record: modelkit.Weights) -> dict[str, Any]:
    """What a run record keeps of the model: all but its config, which lies beside the weights."""
    return {name: value for name, value in record.to_json().items() if name not in ("config", "format")}


def environment() -> dict[str, Any]:
    """Versions and machine, for run records and benchmarks; names no host."""
    import torch  # seconds, which a run that finds nothing to do need not wait

    packages = ("visionmill", "torch", "torchvision", "ray", "prefect", "pyarrow", "duckdb", "av", "pillow")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: package_version(name) for name in packages},
    }
