"""A driver as a process of its own, to be killed: inventory, plan, pool, with the fake model of the engine's tests.

    python -m tests.chaos.driver SOURCE OUTPUT [--ray none] [--workers 2] [--delay-s 0.02] [--shard-items 8] [--files]

Prints one JSON line at the end: what came of it, and the pids of the workers it had.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from infra.ray_session import ray_session
from infra.retry import RetryPolicy
from infra.store import open_store
from tasks.engine.dispatch import DispatchPolicy
from tasks.engine.job import JobSpec
from tasks.engine.pool import PoolSettings, run_pool, run_serial
from tasks.engine.pool_outcome import PoolOutcome
from tasks.engine.progress import Progress
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.output.files import sweep_files
from tasks.product import register
from tests.tasks.engine.fakes import job_for
from tests.toys import copies


def main() -> int:
    """Carry the source out into the output; exit code 0 when every shard is committed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--ray", default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--delay-s", type=float, default=0.02)
    parser.add_argument("--shard-items", type=int, default=8)
    parser.add_argument("--grace-s", type=float, default=60.0)
    parser.add_argument("--files", action="store_true", help="write the toy product that has files beside its rows")
    arguments = parser.parse_args()
    output, job = open_store(arguments.output), _job(arguments)
    output.probe()
    sweep_files(output, job.version)
    with tempfile.TemporaryDirectory() as folder:
        inventory = take_inventory(arguments.source, folder=Path(folder))
        plan = open_plan(output, job.version, inventory, PlanOptions(shard_items=arguments.shard_items))
        if plan is None:
            return _say({"nothing_to_do": True})
        outcome = _carry_out(plan, job, arguments)
    if outcome.error is not None:
        print(outcome.error, file=sys.stderr)
    facts = {
        "finished": outcome.finished,
        "drained": outcome.drained,
        "committed": outcome.shards_committed,
        "already_committed": outcome.already_committed,
        "before": outcome.shards_before,
        "rows": outcome.rows,
        "lost": len(outcome.lost_workers),
        "quarantined": [uri for uri, _ in outcome.quarantined_items],
    }
    _say(facts)
    return 0 if outcome.finished else 1


def _job(arguments: argparse.Namespace) -> JobSpec:
    options: dict[str, Any] = {"model_options": {"delay_s": arguments.delay_s}}
    if arguments.files:
        register(copies.PRODUCT)
        options |= {"version": copies.VERSION, "predictor_factory": "tests.toys.copies:make"}
    return job_for(arguments.output, **options)


def _carry_out(plan: Plan, job: JobSpec, arguments: argparse.Namespace) -> PoolOutcome:
    policy = DispatchPolicy(backoff=RetryPolicy(first_delay_s=0.1, max_delay_s=0.5))
    settings = PoolSettings(policy=policy, grace_s=arguments.grace_s, progress_every_s=0.1)
    if arguments.ray == "none":
        return run_serial(plan, job, on_progress=_tell, settings=settings)
    with ray_session(num_cpus=arguments.workers, object_store_bytes=80 << 20) as session:
        return run_pool(plan, job, session=session, workers=arguments.workers, on_progress=_tell, settings=settings)


def _tell(progress: Progress) -> None:
    print(
        f"progress {progress.shards_done}/{progress.shards_total} items {progress.items_done}",
        file=sys.stderr,
        flush=True,
    )


def _say(facts: dict[str, Any]) -> int:
    print(json.dumps(facts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
