"""The predictor of a job, as a worker gets it: by ``modelkit.load``, or by the factory that the job names."""

from __future__ import annotations

import sys
from typing import Any, Literal

from infra.by_name import resolve
from infra.errors import VersionMismatch
from tasks.engine.job import JobSpec
from tasks.engine.model_source import local_model
from tasks.engine.own_model import code_digest, own_record
from tasks.output.layout import make_version
from tasks.product import default_product, find_product


def predictor_of(job: JobSpec) -> Any:
    """The job's predictor, ready to work.

    Raises:
        VersionMismatch: the weights found here are not those of the job's version.
        UsageError: the predictor factory does not exist.
    """
    predictor = resolve(job.predictor_factory)(job) if job.predictor_factory else load_predictor(job)
    if job.predictor_factory == job.model:
        _check_code(job)  # of weights that the function loads by itself nothing is known
    else:
        _check_digest(predictor, job)
    return predictor


def load_predictor(job: JobSpec) -> Any:
    """The job's model on its device, by ``modelkit.load``; weights given as a URI are fetched once per machine."""
    import modelkit  # torch: seconds that a predictor of another making need not wait

    find_product(job.version.product)  # it may bring models of its own

    options = dict(job.model_options)
    if isinstance(options.get("weights"), str):
        options["weights"] = local_model(options["weights"])
    return modelkit.load(local_model(job.model), device=job.device, **options)


def own_predictor(model: str, weights: str | None, device: Literal["cpu", "cuda"]) -> Any:
    """The predictor of a function (:mod:`tasks.engine.own_model`) for whoever looks at images without a job."""
    product, record = default_product(), own_record(model, weights)
    version = make_version(
        product.name, model=record.reference, model_digest=record.rows_digest, parameters={}, schema=product.schema
    )
    options = {"min_score": 0.0} | ({"weights": weights} if weights else {})
    job = JobSpec(model, version, "", "none", device, model_options=options, predictor_factory=model)
    return predictor_of(job)


def take_one_thread() -> int | None:
    """Torch on a CPU: workers are there to use the other cores, and other numbers of threads give other last digits.

    Returns:
        How many it had; None where the predictor did without torch.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def _check_code(job: JobSpec) -> None:
    if code_digest(job.model, job.model_options.get("weights")) != job.version.model_digest:
        raise VersionMismatch(
            f"the code of {job.model} is another one here than where the job was started",
            hint="Every machine must have the same files of it, and the same --weights.",
        )


def _check_digest(predictor: Any, job: JobSpec) -> None:
    digest = getattr(predictor, "rows_digest", None)
    if digest is not None and digest != job.version.model_digest:
        raise VersionMismatch(
            f"{job.model} has the digest {digest[:12]} here, but the job is for {job.version.model_digest[:12]}",
            hint="Every machine must see the same weights and record: name them by URI, or copy both files to all.",
        )
