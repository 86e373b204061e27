"""A standing worker of a process work pool: it runs scheduled and triggered deployments on this machine."""

from __future__ import annotations

import os
import re
import sys
import urllib.parse

from infra.prefect_server import PrefectApiError, client_environment, request, without_prefect
from infra.standing import Site, any_free_ports

WORKER_NAME = "visionmill-local"
QUERY_S = 2  # Prefect's 10 s is for workers by the hundred; here one asks, and somebody may wait for the run


class PrefectWorker:
    """The recipe for :class:`infra.standing.StandingService`.

    The worker, and so every run it starts, has the environment of the process that started it: storage credentials in
    the AWS_* variables reach the runs this way and never pass through Prefect's database.

    Args:
        pool: name of the process work pool; created if the server does not know it.
        server: the running Prefect server.
    """

    port_names: tuple[str, ...] = ()
    secret_names: tuple[str, ...] = ()

    def __init__(self, pool: str, server: Site, *, environment: dict[str, str] | None = None) -> None:
        self.name = worker_service_name(pool)
        self._pool = pool
        self._server = server
        self._environment = environment or {}

    def choose_ports(self) -> dict[str, int]:
        return any_free_ports(self.port_names)

    def command(self, site: Site) -> tuple[list[str], dict[str, str]]:
        argv = [
            sys.executable, "-m", "prefect", "worker", "start",
            "--pool", self._pool, "--type", "process", "--name", WORKER_NAME,
        ]  # fmt: skip
        env = {
            **without_prefect(os.environ),
            **self._environment,
            **client_environment(self._server),
            "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_S),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",  # 0.0.0.0 by default, should somebody turn it on
        }
        return argv, env

    def prepare(self, site: Site) -> None:
        """Forget the record of an earlier worker, so that "online" can only mean the new one."""
        self._forget()

    def is_healthy(self, site: Site) -> bool:
        try:
            found = request(self._server, "POST", f"{self._path()}/filter", {}, timeout_s=3.0)
        except PrefectApiError:
            return False
        return any(worker["name"] == WORKER_NAME and worker.get("status") == "ONLINE" for worker in found)

    def settle(self, site: Site) -> None:
        """The worker has made its pool by itself."""

    def clean(self, site: Site) -> None:
        self._forget()

    def url(self, site: Site) -> str:
        return f"work pool {self._pool!r}"

    def _path(self) -> str:
        return f"/work_pools/{urllib.parse.quote(self._pool, safe='')}/workers"

    def _forget(self) -> None:
        try:
            request(self._server, "DELETE", f"{self._path()}/{WORKER_NAME}", timeout_s=3.0)
        except PrefectApiError:
            return  # no such worker, no such pool, or no server: nothing to forget


def worker_service_name(pool: str) -> str:
    """The folder-safe name of the worker's service."""
    return "worker-" + re.sub(r"[^A-Za-z0-9_.-]", "_", pool)
