"""A worker's side of the run's decision: run the model as decided, or plainly if that fails here."""

from __future__ import annotations

import logging
from typing import Any

from infra.settings import settings
from tasks.engine.job import JobSpec

logger = logging.getLogger(__name__)


def compile_cache() -> str:
    """Folder for compiled graphs on this machine, shared by workers and later runs."""
    return str(settings().cache_dir / "compiled")


def run_as_decided(predictor: Any, job: JobSpec) -> None:
    """Give a worker's predictor the execution that the run measured as fastest; rows do not depend on success."""
    if job.execution is None or job.predictor_factory is not None:
        return
    from modelkit.compile.decision import Decision, apply  # torch: seconds that a plain worker need not wait

    problem = apply(predictor, Decision.from_json(job.execution), compile_cache())
    if problem is not None:
        logger.warning("this worker stays eager: %s", problem)
