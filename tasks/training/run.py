"""Carry a training run out: on Ray Train with any number of workers, or in this process.

On a Ray that we started ourselves nothing may listen beyond loopback. torch's rendezvous does (its store binds to every
interface), so there a single worker needs no process group at all, and several meet through a file and talk over the
loopback interface. On a cluster that was joined Ray's own setup is used.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.errors import ServiceError, VisionmillError, is_transient
from infra.ray_session import RaySession
from infra.ray_words import sending_words, words_from
from infra.store import open_store
from infra.telling import tell
from modelkit.records import Weights
from modelkit.training.processes import Rank
from tasks.training.job import TrainingJob, finished_weights
from tasks.training.run_log import LogTarget
from tasks.training.work import train_share

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

RESTARTS = 3
"""So many deaths of workers Ray Train answers by starting all of them again, from the last checkpoint."""


def train_here(job: TrainingJob, logs: Sequence[LogTarget] = ()) -> tuple[str, Weights]:
    """Train in this process; URI and record of the weights. ``logs`` hear its figures meanwhile."""
    train_share(job, Rank(), logs=logs)
    return _result(job)


def train_on_ray(job: TrainingJob, session: RaySession, logs: Sequence[LogTarget] = ()) -> tuple[str, Weights]:
    """Train on the workers of a Ray; URI and record of the weights. ``logs`` are opened by the first worker.

    Raises:
        ServiceError: too few resources, or workers that died once too often; the checkpoint stays.
        VisionmillError, ValueError: what the workers raised.
    """
    session.require(num_workers=job.num_workers, num_gpus=float(job.use_gpu))
    if finished_weights(open_store(job.output_uri), job) is not None:
        return _result(job)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    place = f"visionmill-training-{uuid.uuid4().hex}"
    tell("starting the training's workers")
    with tempfile.TemporaryDirectory(prefix="visionmill-train-") as folder, words_from(place):
        trainer = TorchTrainer(
            cast(Any, _train_worker),  # its type allows no result, its documentation does
            train_loop_config={"job": job.to_json(), "place": place, "logs": [asdict(each) for each in logs]},
            torch_config=_torch_config(job, session, Path(folder)),
            scaling_config=ScalingConfig(
                num_workers=job.num_workers,
                use_gpu=job.use_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if job.use_gpu else {})},
            ),
            run_config=RunConfig(
                name=f"{job.fingerprint}-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        _fit(trainer.fit)
    return _result(job)


def _fit(fit: Callable[[], Any]) -> None:
    """Ray wraps what a worker raised, layer upon layer; ours is what counts."""
    try:
        error = fit().return_value
    except Exception as error:
        cause: BaseException | None = error
        seen: set[int] = set()
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            for inner in [cause, getattr(cause, "cause", None), *getattr(cause, "worker_failures", {}).values()]:
                if isinstance(inner, VisionmillError | ValueError):
                    raise inner from error
            cause = cause.__cause__ or next(iter(getattr(cause, "worker_failures", {}).values()), None)
        raise ServiceError(
            f"training on Ray ended early: {str(error).strip().splitlines()[-1]}",
            hint="run the same command again: it goes on from the last checkpoint",
        ) from error
    if error is not None:
        raise error


def _train_worker(config: dict[str, Any]) -> Exception | None:
    """The function that Ray Train calls in every worker.

    Ray answers whatever is raised by starting everything again. Trying again does not help against what is wrong with
    data or recipe, so a lone worker returns that; several must raise it, or the others would wait for the one for ever.
    """
    from ray.train import get_context

    context = get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    try:
        with sending_words(config["place"]):
            logs = [LogTarget(**each) for each in config["logs"]]
            train_share(TrainingJob.from_json(config["job"]), rank, logs=logs)
    except (VisionmillError, ValueError) as error:
        if rank.count > 1 or is_transient(error):
            raise
        return error
    return None


def _result(job: TrainingJob) -> tuple[str, Weights]:
    found = finished_weights(open_store(job.output_uri), job)
    if found is None:
        raise ServiceError(
            f"the run {job.fingerprint} ended without weights", hint="run the same command again; it goes on"
        )
    return found


def _torch_config(job: TrainingJob, session: RaySession, folder: Path) -> TorchConfig:
    from ray.train.torch import TorchConfig

    if not session.is_local:
        return TorchConfig()
    return _loopback_config(str(folder / "meeting"), "nccl" if job.use_gpu else "gloo")


def _loopback_config(meeting: str, backend: str) -> TorchConfig:
    """A torch setup of one machine, without a rendezvous over the network."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class LoopbackBackend(Backend):
        """Lets workers of one machine meet through a file; a single one meets nobody."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            """Called by Ray Train once all workers live."""
            import ray

            count = len(worker_group)
            if count > 1:
                place = f"{meeting}-{uuid.uuid4().hex}"  # a fresh one for every start: old ones hold dead members
                ray.get(
                    [
                        worker_group.execute_single_async(index, _meet, place, index, count, backend)
                        for index in range(count)
                    ]
                )

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Called by Ray Train at the end; processes end with their group."""

    @dataclass
    class LoopbackTorchConfig(TorchConfig):
        """Ray's configuration with our backend."""

        @property
        def backend_cls(self) -> type[Backend]:
            """Whom Ray Train asks."""
            return LoopbackBackend

    return LoopbackTorchConfig(backend=backend)


def _meet(place: str, index: int, count: int, backend: str) -> None:
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, init_method=f"file://{place}", rank=index, world_size=count)
