"""A worker's side of the decision: run the model as decided, or plainly if that fails here."""

from __future__ import annotations

from typing import Any

from infra.settings import settings
from tasks.engine.job import JobSpec


def compile_cache() -> str:
    """Folder for compiled graphs on this machine, shared by workers and later runs."""
    return str(settings().cache_dir / "compiled")


def run_as_decided(predictor: Any, job: JobSpec) -> str | None:
    """Run the model as the job says; why that is not possible here, or None. Then rows differ in the last digits."""
    if job.execution is None or job.predictor_factory is not None:
        return None
    from modelkit.compile.decision import Decision, apply  # torch: seconds that a plain worker need not wait

    problem = apply(predictor, Decision.from_json(job.execution), compile_cache())
    return None if problem is None else f"a worker runs uncompiled what others ran compiled: {problem}"
