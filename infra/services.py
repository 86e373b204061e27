"""``visionmill up | down | status``: the standing local services. Loopback only, one set per state directory.

They outlive the command that started them and are shared by all jobs of their state directory: a second ``up`` finds
the first one's. Ports are chosen free and remembered, passwords generated, both kept in files of mode 600.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infra.prefect_page import login_file
from infra.prefect_server import PrefectServer, api_url, auth_string, client_environment
from infra.prefect_worker import PrefectWorker
from infra.seaweedfs import S3Endpoint, SeaweedFS, endpoint_of
from infra.settings import settings
from infra.standing import ServiceStatus, Site, StandingService, write_private

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServicesStatus:
    """All services of one state directory."""

    state_dir: Path
    services: tuple[ServiceStatus, ...]


def up(*, s3: bool = False, worker: bool = False, state_dir: Path | None = None) -> ServicesStatus:
    """Start the Prefect server, and a local S3 server and a worker if asked for; what runs already is kept.

    Raises:
        ServiceError: one of them did not come up; the others stay.
    """
    base = _base(state_dir)
    starts: list[Callable[[], object]] = [lambda: ensure_prefect_site(base)]
    if s3:
        starts.append(lambda: ensure_s3(state_dir=base))
    _together(starts)
    if worker:
        ensure_worker(state_dir=base)
    return status(state_dir=base)


def down(*, state_dir: Path | None = None) -> tuple[str, ...]:
    """Stop every service of the state directory; the names of those that ran. What they stored stays.

    Workers go first: one that outlives its server keeps trying for minutes.
    """
    base, grace_s = _base(state_dir), settings().service_stop_timeout_s
    workers = _workers(base)
    others = [_prefect(base), _s3(base)]
    stopped = _together([lambda one=one: one.stop(timeout_s=grace_s) for one in workers])  # type: ignore[misc]
    stopped += _together([lambda one=one: one.stop(timeout_s=grace_s) for one in others])  # type: ignore[misc]
    return tuple(one.name for one, ran in zip([*workers, *others], stopped, strict=True) if ran)


def status(*, state_dir: Path | None = None) -> ServicesStatus:
    """What runs, where, and whether it answers. Starts nothing."""
    base = _base(state_dir)
    known = [_prefect(base), _s3(base), *_workers(base)]
    return ServicesStatus(base, tuple(_together([one.status for one in known])))


def ensure_prefect(*, state_dir: Path | None = None) -> str:
    """The API address of a Prefect server, and this process's environment set up to use it.

    A server that the user named (PREFECT_API_URL) is taken as it is; else the standing local one, started if needed.

    Raises:
        ServiceError: the local server did not come up.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
        return named
    site = ensure_prefect_site(_base(state_dir))
    os.environ.update(client_environment(site))
    _refresh_prefect_settings()
    return api_url(site)


def ensure_prefect_site(base: Path) -> Site:
    """The local server's ports and secrets; started if it is not there. The environment is left alone."""
    return _prefect(base).ensure(timeout_s=settings().service_start_timeout_s)


def page_of(path: str = "/", *, state_dir: Path | None = None) -> tuple[str, str]:
    """What a browser opens to be logged in at the Prefect server, started if needed, and the page's plain address.

    The first is a file that only its owner can read: an address with a password would be seen by every user of the
    machine. Of a server that the user named (PREFECT_API_URL) both are its address, which has a log-in of its own.

    Args:
        path: on the server.

    Raises:
        ServiceError: the local server did not come up.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        address = named.rstrip("/").removesuffix("/api") + path
        return address, address
    site = ensure_prefect_site(_base(state_dir))
    url = PrefectServer().url(site)
    file = site.folder / "login.html"
    write_private(file, login_file(url, auth_string(site), path))
    return file.as_uri(), url + path


def ensure_s3(*, bucket: str | None = None, state_dir: Path | None = None) -> S3Endpoint:
    """The standing local S3 server, started if needed; with ``bucket``: created if it is not there.

    Raises:
        ServiceError: it did not come up.
    """
    endpoint = endpoint_of(_s3(_base(state_dir)).ensure(timeout_s=settings().service_start_timeout_s))
    if bucket is not None:
        from infra.s3_client import S3Client  # half a second (aiohttp, botocore), only for those who want a bucket
        from infra.store_s3 import create_bucket

        client = S3Client(endpoint=endpoint.url, key=endpoint.access_key, secret=endpoint.secret_key)
        create_bucket(f"s3://{bucket}", client)
    return endpoint


def ensure_worker(pool: str | None = None, *, state_dir: Path | None = None) -> None:
    """A standing worker for a process work pool (default: the setting ``work_pool``) on the local Prefect server.

    Its runs see the local S3 server if that is up and no other endpoint is named in the environment.

    Raises:
        ServiceError: it did not come online.
    """
    base = _base(state_dir)
    site = ensure_prefect_site(base)
    recipe = PrefectWorker(pool or settings().work_pool, site, environment=_s3_environment(base))
    StandingService(recipe, base).ensure(timeout_s=settings().service_start_timeout_s)


def environment(*, state_dir: Path | None = None) -> dict[str, str]:
    """The variables with which any process reaches the services that run now. They hold secrets: don't log them."""
    base = _base(state_dir)
    site = _prefect(base).running_site()
    return {**(client_environment(site) if site else {}), **_s3_environment(base)}


def environment_exports(*, state_dir: Path | None = None) -> str:
    """:func:`environment` as ``export NAME=value`` lines for a shell."""
    return "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in sorted(environment(state_dir=state_dir).items())
    )


def _s3_environment(base: Path) -> dict[str, str]:
    site = _s3(base).running_site()
    return endpoint_of(site).environment() if site else {}


def _base(state_dir: Path | None) -> Path:
    return state_dir or settings().state_dir


def _prefect(base: Path) -> StandingService:
    return StandingService(PrefectServer(), base)


def _s3(base: Path) -> StandingService:
    return StandingService(SeaweedFS(), base)


def _workers(base: Path) -> list[StandingService]:
    """Every worker that was ever started here, by its folder."""
    site = Site(base / "prefect", *_prefect_memory(base))
    names = sorted(folder.name.removeprefix("worker-") for folder in base.glob("worker-*") if folder.is_dir())
    return [StandingService(PrefectWorker(name, site), base) for name in names]


def _prefect_memory(base: Path) -> tuple[dict[str, int], dict[str, str]]:
    known = _prefect(base).remembered_site()
    return (dict(known.ports), dict(known.secrets)) if known else ({"api": 0}, {"password": ""})


def _together(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Run at the same time, wait for all, then raise the first error if there was one."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        futures = [pool.submit(call) for call in calls]
    return [future.result() for future in futures]


def _refresh_prefect_settings() -> None:
    """Prefect reads the environment when it is imported; if that has happened, let it read again."""
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
