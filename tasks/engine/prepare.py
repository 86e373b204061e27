"""From what was asked for to what a worker understands: the model's record, the version, the probed output."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, Literal

import psutil
import torch

import modelkit
from infra.errors import UsageError
from infra.store import Store, StoreCapabilities, open_store
from tasks.engine.job import JobSpec, Looking
from tasks.engine.model_source import local_model
from tasks.media.decoding import DecodeOptions
from tasks.output.layout import make_version
from tasks.output.schema import schema_of
from tasks.records import Version


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


def prepare_segments(
    *,
    output: str,
    run_id: str,
    model: str,
    weights: str | None,
    decode: DecodeOptions,
    score_threshold: float,
    device: Literal["cpu", "cuda"],
    batch_size: int | None,
    memory_bytes: int,
    max_consecutive_failures: int,
    looking: Looking | None = None,
) -> PreparedJob:
    """Find the model, fix the version, and try out the output before anything is listed or computed.

    Args:
        output: URI of the results.
        model, weights: as ``modelkit.load`` takes them, or URIs of weights in object storage.
        decode, score_threshold: make rows what they are, so they are part of the version.
        batch_size: None: 1 on a CPU (there a larger batch only costs memory), 8 on a GPU.
        looking: another way to look than ``modelkit.load``; part of the version, too.

    Raises:
        UsageError: an unknown model, weights that do not fit it.
        StoreError: the output can't be written to: missing bucket, wrong credentials, no space.
    """
    record = describe_model(model, weights)
    schema, _ = schema_of("segments", measured=looking is not None and looking.measures)
    parameters: dict[str, object] = {
        **decode.version_parameters,
        "score_threshold": score_threshold,
        **({} if looking is None else {"predictor": looking.factory, **looking.options}),
    }
    version = make_version(
        "segments", model=record.reference, model_digest=record.digest, parameters=parameters, schema=schema
    )
    store = open_store(output)
    capabilities = store.probe()
    job = JobSpec(
        model=model,
        version=version,
        output_uri=store.uri,
        run_id=run_id,
        device=device,
        batch_size=batch_size or (1 if device == "cpu" else 8),
        memory_bytes=memory_bytes,
        decode=decode,
        model_options={"min_score": score_threshold} | ({"weights": weights} if weights else {}),
        max_consecutive_failures=max_consecutive_failures,
        carries_state=modelkit.is_video_model(record),
        driver_commits=not capabilities.conditional_create,
        predictor_factory=None if looking is None else looking.factory,
        predictor_options={} if looking is None else dict(looking.options),
    )
    return PreparedJob(job, record, store, capabilities)


def describe_model(model: str, weights: str | None) -> modelkit.Weights:
    """The record of the model that is meant; modelkit's complaints become usage errors."""
    try:
        return modelkit.describe(local_model(model), weights=None if weights is None else local_model(weights))
    except modelkit.ModelkitError as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models and their weights") from error


def summary_of_weights(record: modelkit.Weights) -> dict[str, Any]:
    """What a run record keeps of the model: all but its config, which lies beside the weights."""
    return {name: value for name, value in record.to_json().items() if name not in ("config", "format")}


def environment() -> dict[str, Any]:
    """Versions and machine, for run records and benchmarks; names no host."""
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
