"""The step that computes: which workers there shall be, how they run the model, and the pool itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from flows.progress import run_listener
from flows.refusals import check_workers
from infra.machine import cpu_slots, may_have_gpu
from infra.ray_session import RaySession, ray_session
from infra.telling import tell
from tasks.engine.job import JobSpec
from tasks.engine.pool import Refusal, run_pool, run_serial
from tasks.engine.pool_outcome import PoolOutcome
from tasks.engine.prepare import PreparedJob
from tasks.ingest.plan import Plan
from tasks.parameters import JobParameters
from tasks.product import find_product

SERIAL = "none"
WORKERS_PER_GPU, CORES_PER_GPU_WORKER = 4, 4
BYTES_PER_GPU_WORKER = 6 << 30  # context, weights, and what a batch of large images needs


@dataclass(frozen=True, slots=True)
class WorkerNeeds:
    """What is asked of the machines.

    Args:
        ray: address of a cluster, None for a local Ray, "none" for this process.
        workers: how many, or "auto": as many as fit and have work.
        num_gpus: of each worker; 0 computes on processors.
        policy: of compiled inference.
        batch_size: images in a forward pass; None: by device, or as the plan began.
    """

    ray: str | None
    workers: int | Literal["auto"]
    num_gpus: float
    policy: Literal["auto", "on", "off"]
    batch_size: int | None = None

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where models live."""
        return "cuda" if self.num_gpus > 0 else "cpu"


def needs_of(parameters: JobParameters) -> WorkerNeeds:
    """Resolve the defaults: this machine's GPUs, if it has any, shared by as many workers as keep them busy.

    A cluster's GPUs can't be seen from here: for ``--ray ADDRESS`` they must be asked for with ``--gpus-per-worker``.
    """
    gpus = parameters.gpus_per_worker
    if gpus is None:
        gpus = _share_of_gpu(parameters.workers) if parameters.ray in (None, SERIAL) else 0.0
    check_workers(parameters)
    return WorkerNeeds(parameters.ray, parameters.workers, gpus, parameters.compile, parameters.batch_size)


def expected_slots(needs: WorkerNeeds) -> int:
    """Workers that will share a plan, as far as it can be told before they are asked for; a cluster's are unknown."""
    if needs.ray == SERIAL:
        return 1
    if needs.workers != "auto":
        return needs.workers
    return round(_local_gpus() / needs.num_gpus) if needs.num_gpus > 0 else cpu_slots()


def _share_of_gpu(workers: int | Literal["auto"]) -> float:
    """GPUs of one worker on this machine; 0 where there are none.

    One process can't keep a large GPU busy: decoding, masks and rows hold the interpreter up in which its model is
    called. Measured on an H100 (docs/benchmarks): one worker reached 30 % of a bare loop, four that shared it 94 %.
    """
    gpus = _local_gpus()
    if gpus == 0:
        return 0.0
    if workers == "auto":
        per_gpu = min(
            WORKERS_PER_GPU, cpu_slots() // (CORES_PER_GPU_WORKER * gpus), _gpu_bytes() // BYTES_PER_GPU_WORKER
        )
    else:
        per_gpu = math.ceil(workers / gpus)
    return 1 / max(1, per_gpu)


def own_device(wanted: bool) -> Literal["cpu", "cuda"]:
    """Where this process itself runs a model: on a GPU, if one is wanted and can be reached from here."""
    return "cuda" if wanted and _local_gpus() else "cpu"


def _local_gpus() -> int:
    if not may_have_gpu():
        return 0  # known without torch, whose import takes seconds
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_bytes() -> int:
    """Memory of the smallest GPU."""
    import torch

    return min(torch.cuda.get_device_properties(index).total_memory for index in range(_local_gpus()))


def carry_out(
    plan: Plan, prepared: PreparedJob, needs: WorkerNeeds, *, refusal: Refusal
) -> tuple[PreparedJob, PoolOutcome]:
    """Start (or join) Ray, run the model as the plan's first run chose to, and work the plan off.

    Returns:
        The job with its execution filled in, and what came of the pool. An error that ended the run early is in the
        outcome, not raised, so that the run record can be written first.
    """
    from tasks.engine.plan_execution import follow_plan

    with _session(needs) as session:
        num_workers = _num_workers(needs, session, plan)
        followed = follow_plan(
            plan,
            prepared.job,
            policy=needs.policy,
            batch_size=needs.batch_size,
            choose=lambda: _choose(plan, prepared.job, needs, num_workers, session),
        )
        prepared = dataclasses.replace(prepared, job=followed.job)
        listen = run_listener(find_product(prepared.version.product).doing)
        if session is None:
            outcome = run_serial(plan, prepared.job, on_progress=listen, refusal=refusal)
        else:
            outcome = run_pool(
                plan,
                prepared.job,
                session=session,
                workers=needs.workers,
                num_gpus=needs.num_gpus,
                on_progress=listen,
                refusal=refusal,
            )
        outcome.notes[:0] = followed.notes
    return prepared, outcome


def _choose(
    plan: Plan, job: JobSpec, needs: WorkerNeeds, num_workers: int, session: RaySession | None
) -> dict[str, Any]:
    from tasks.engine.calibrate import choose_for_run  # as above

    tell("choosing how to run the model: measured, and compiled where that repays")
    return choose_for_run(plan, job, needs.policy, workers=num_workers, session=session, num_gpus=needs.num_gpus)


@contextmanager
def _session(needs: WorkerNeeds) -> Iterator[RaySession | None]:
    if needs.ray == SERIAL:
        yield None
        return
    tell("starting Ray" if needs.ray is None else "joining the Ray cluster")
    with ray_session(needs.ray) as session:
        count = 1 if needs.workers == "auto" else needs.workers
        session.require(num_workers=count, num_gpus=needs.num_gpus)
        yield session


def _num_workers(needs: WorkerNeeds, session: RaySession | None, plan: Plan) -> int:
    if session is None:
        return 1
    if needs.workers != "auto":
        return needs.workers
    slots = int(session.num_gpus / needs.num_gpus + 1e-9) if needs.num_gpus > 0 else session.worker_slots
    return max(1, min(slots, plan.num_shards))
