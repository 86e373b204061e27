"""Ray for one run: a local one, started and ended by us on loopback, or a cluster that we join and leave alone.

Ray is imported here and nowhere at module level: two switches must be in the environment before its first import.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.errors import ServiceError, UsageError
from infra.machine import cpu_slots, malloc_environment
from infra.processes import ProcessId, tree
from infra.ray_reaper import reaped
from infra.ray_watch import ClusterWatch, LocalWatch, NoDeathNotices, RayWatch
from infra.settings import settings
from infra.standing import write_private

OUR_PACKAGES = ("flows", "tasks", "modelkit", "infra")
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
START_ATTEMPTS = 3
_TEMP_PREFIX = "vmray-"
_NO_DEATH_NOTICES = NoDeathNotices()  # one, because a logger takes each filter once
_CONNECT_HINT = (
    "Check the address, that the versions of Ray and Python are the same on both sides, and that RAY_AUTH_MODE "
    "and the token (RAY_AUTH_TOKEN_PATH) are those of the cluster."
)


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connected Ray. Resources are what the cluster has, not what is free at the moment."""

    address: str  # "local", or what was joined
    is_local: bool  # started by us: ends with the session
    worker_slots: int  # how many single-threaded CPU workers fit
    num_gpus: float
    runtime_env: dict[str, Any]  # for actors; already part of the job on a cluster that we joined
    watch: RayWatch | None = None

    @property
    def is_lost(self) -> bool:
        """Whether this Ray is gone."""
        return self.watch is not None and self.watch.lost() is not None

    def check(self) -> None:
        """Say at once that this Ray is gone, where Ray itself would wait for ever.

        Raises:
            ServiceError: names what is gone.
        """
        lost = None if self.watch is None else self.watch.lost()
        if lost is not None:
            where = "the local Ray" if self.is_local else f"the Ray at {self.address}"
            raise ServiceError(
                f"{where} ended in the middle of the work: {lost}",
                hint="Run the same command again: it goes on where it stopped.",
            )

    def get(self, reference: Any) -> Any:
        """What a task or a call of an actor gives.

        Raises:
            ServiceError: this Ray is gone.
            Exception: what the task raises.
        """
        import ray  # see the module

        while not ray.wait([reference], timeout=1.0)[0]:
            self.check()
        return ray.get(reference)

    def worker_environment(self, *, num_gpus: float = 0) -> dict[str, str]:
        """Environment variables for one worker. Without a GPU of its own it must see none (Ray would show it all)."""
        return {} if num_gpus > 0 else {"CUDA_VISIBLE_DEVICES": ""}

    def require(self, *, num_workers: int, num_cpus: float = 1, num_gpus: float = 0) -> None:
        """Refuse plainly what this Ray can never schedule; Ray itself would wait for ever without a word.

        Args:
            num_workers: workers that shall run at the same time.
            num_cpus: processors for each.
            num_gpus: GPUs for each, fractions allowed.

        Raises:
            ServiceError: names what is lacking.
        """
        where = "this machine" if self.is_local else f"the Ray at {self.address}"
        if num_gpus > 0 and self.num_gpus == 0:
            raise ServiceError(
                f"GPUs were asked for, and {where} has none", hint="Run without --gpus, or on a cluster that has some."
            )
        if num_gpus * num_workers > self.num_gpus + 1e-9 and num_gpus > 0:
            raise ServiceError(
                f"{num_workers} workers with {num_gpus:g} GPUs each need {num_workers * num_gpus:g}; "
                f"{where} has {self.num_gpus:g}",
                hint="Ask for fewer workers, or for a smaller share each.",
            )
        if num_cpus * num_workers > self.worker_slots:
            raise ServiceError(
                f"{num_workers} workers with {num_cpus:g} processors each need {num_workers * num_cpus:g}; "
                f"{where} has {self.worker_slots}",
                hint="Ask for fewer workers (--workers auto takes what is there).",
            )


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, object_store_bytes: int | None = None
) -> Iterator[RaySession]:
    """Ray for the time of the ``with`` block.

    Without ``address`` a local Ray is started and ended (unless this process is connected to one already: that one is
    used and left running). With ``address`` ("auto", "host:port", "ray://host:10001") the cluster is joined, our
    packages are shipped to its workers, and only the connection ends.

    Args:
        num_cpus: processors of a local Ray; default: those this process may use.
        object_store_bytes: shared memory of a local Ray; default from the settings.

    Raises:
        ServiceError: Ray did not start, or the cluster cannot be joined; says why.
        UsageError: resources given for a cluster that has its own.
    """
    if address is not None and (num_cpus is not None or object_store_bytes is not None):
        raise UsageError("num_cpus and object_store_bytes are for a local Ray; a cluster has its own")
    if _is_connected():
        yield _describe(address or _connected_address(), is_local=False, runtime_env={})
    elif address is None:
        with _local(num_cpus, object_store_bytes) as session:
            yield session
    else:
        with _joined(address) as session:
            yield session


@contextmanager
def _local(num_cpus: int | None, object_store_bytes: int | None) -> Iterator[RaySession]:
    prepare_local_environment()
    sweep_temp_folders()
    import ray

    _check_loopback()
    temp = _start(num_cpus or cpu_slots(), object_store_bytes or settings().ray_object_store_bytes)
    started = _processes_of(temp)
    with reaped(temp, started.values()) as reaper:
        try:
            yield _describe("local", is_local=True, runtime_env={}, watch=LocalWatch(started.values()))
        finally:
            started |= _processes_of(temp)
            started.pop(reaper, None)  # it waits for us, so nobody may wait for it
            ray.shutdown()
            _end(started)
            shutil.rmtree(temp, ignore_errors=True)


def _start(num_cpus: int, object_store_bytes: int) -> Path:
    """Start a local Ray; its temp folder. Ray gives up on its own start after 30 s, which a busy machine can need."""
    attempts = START_ATTEMPTS
    while True:
        attempts -= 1
        # Ray's socket paths are long: they fit below /tmp only. It opens its folder to everybody (0777), so that one
        # lies in a folder of ours that nobody else can enter.
        temp = Path(tempfile.mkdtemp(prefix=f"{_TEMP_PREFIX}{os.getpid()}-", dir="/tmp"))
        try:
            _connect(
                "a local Ray",
                num_cpus=num_cpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                _temp_dir=str(temp / "ray"),
            )
            return temp
        except ServiceError:
            _end(_processes_of(temp))
            shutil.rmtree(temp, ignore_errors=True)
            if attempts == 0:
                raise


@contextmanager
def _joined(address: str) -> Iterator[RaySession]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    runtime_env = {"py_modules": package_folders(), "excludes": ["**/__pycache__"]}
    import ray

    _connect(f"the Ray cluster {address}", address=address, runtime_env=runtime_env)
    watch = ClusterWatch(ray.cluster_resources)
    try:
        yield _describe(address, is_local=False, runtime_env=runtime_env, watch=watch)
    finally:
        watch.close()
        ray.shutdown()  # of a cluster that was joined: only disconnects


def prepare_local_environment() -> None:
    """Set what a local Ray must find in the environment, before the first ``import ray`` of this process.

    Loopback only; token authentication with a token of our own; no usage reports; an out-of-memory task is retried
    twice instead of for ever; workers keep the memory that a model frees (a cluster that is joined was started by
    others, with their environment; a ``runtime_env`` for this would cost each worker 3 s at its start).
    """
    token = settings().state_dir / "ray" / "auth_token"
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(token, secrets.token_hex(32))
    os.environ[LOOPBACK_SWITCH] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_task_oom_retries", "2")
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "180")  # its agent starts even without a dashboard
    for name, value in malloc_environment().items():
        os.environ.setdefault(name, value)
    # A task or actor without GPUs sees none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")


def package_folders() -> list[str]:
    """The folders of our four packages, found without importing them."""
    folders = []
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ServiceError(f"the package {name!r} is not installed", hint="pip install visionmill")
        folders.append(next(iter(spec.submodule_search_locations)))
    return folders


def sweep_temp_folders(parent: Path = Path("/tmp")) -> list[Path]:
    """Remove the folders of local Rays whose drivers were killed; returns them."""
    swept = []
    for folder in parent.glob(f"{_TEMP_PREFIX}*-*"):
        pid = folder.name.removeprefix(_TEMP_PREFIX).partition("-")[0]
        try:
            stale = pid.isdigit() and not psutil.pid_exists(int(pid)) and folder.stat().st_uid == os.getuid()
        except FileNotFoundError:
            continue
        if stale:
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def _is_connected() -> bool:
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


def _connected_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _check_loopback() -> None:
    from ray._private import ray_constants

    if ray_constants.ENABLE_RAY_CLUSTER:
        raise ServiceError(
            "ray was imported before the session was opened, so a local Ray would listen on every interface",
            hint=f"Set {LOOPBACK_SWITCH}=0 before importing ray, or open the session first.",
        )


def _connect(what: str, **arguments: Any) -> None:
    import ray

    logging.getLogger("ray._private.worker").addFilter(_NO_DEATH_NOTICES)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, configure_logging=False, **arguments)
    except Exception as error:
        ray.shutdown()
        first_line = str(error).strip().partition("\n")[0]
        raise ServiceError(
            f"{what} could not be reached or started: {type(error).__name__}: {first_line}", hint=_CONNECT_HINT
        ) from error


def _describe(
    address: str, *, is_local: bool, runtime_env: dict[str, Any], watch: RayWatch | None = None
) -> RaySession:
    import ray

    resources = ray.cluster_resources()
    return RaySession(
        address=address,
        is_local=is_local,
        worker_slots=int(resources.get("CPU", 0)),
        num_gpus=float(resources.get("GPU", 0)),
        runtime_env=runtime_env,
        watch=watch,
    )


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").exists()


def _processes_of(temp: Path) -> dict[int, ProcessId]:
    """The processes of the Ray with this temp folder: those that name it, and all their children."""
    found: dict[int, ProcessId] = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if any(str(temp) in word for word in child.cmdline()):
                found |= {one.pid: ProcessId(one.pid, one.create_time()) for one in tree(child)}
        except psutil.Error:
            continue
    return found


def _end(started: dict[int, ProcessId]) -> None:
    """Whatever outlived Ray's own shutdown is killed, by exact identity."""
    alive = [process for process in (identity.process() for identity in started.values()) if process is not None]
    _, stubborn = psutil.wait_procs(alive, timeout=3.0)
    for process in stubborn:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(stubborn, timeout=3.0)
