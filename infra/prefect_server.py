"""A standing Prefect server on SQLite: loopback, with a password; never the ephemeral one, which loses records."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from infra.retry import RetryPolicy
from infra.standing import Site, any_free_ports

USER = "visionmill"
HEARTBEAT_S = 60
ZOMBIE_AFTER_S = 3 * HEARTBEAT_S
ZOMBIE_AUTOMATION = "visionmill: mark runs crashed whose heartbeat stopped"

# One server process per database file. The recorders read and write one event at a time by default, which starves the
# API on SQLite (measured: flow starts took 30 s beside 900 task runs, 17 s with these sizes).
_SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "PREFECT__SERVER_FINAL": "1",
}


class PrefectServer:
    """The recipe for :class:`infra.standing.StandingService`."""

    name = "prefect"
    port_names: tuple[str, ...] = ("api",)
    secret_names: tuple[str, ...] = ("password",)

    def choose_ports(self) -> dict[str, int]:
        return any_free_ports(self.port_names)

    def command(self, site: Site) -> tuple[list[str], dict[str, str]]:
        argv = [
            sys.executable, "-m", "uvicorn", "--factory", "infra.prefect_page:create_app",
            "--host", "127.0.0.1", "--port", str(site.ports["api"]), "--timeout-keep-alive", "5",
            "--log-level", "warning",
        ]  # fmt: skip
        env = {
            **without_prefect(os.environ),
            **_SERVER_SETTINGS,
            "PREFECT_HOME": str(site.folder / "home"),
            "PREFECT_API_URL": api_url(site),  # the server's own services and the page in the browser call it
            "PREFECT_API_AUTH_STRING": auth_string(site),
            "PREFECT_SERVER_API_AUTH_STRING": auth_string(site),
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(site.ports["api"]),
        }
        return argv, env

    def prepare(self, site: Site) -> None:
        (site.folder / "home").mkdir(exist_ok=True, mode=0o700)

    def is_healthy(self, site: Site) -> bool:
        try:
            return request(site, "GET", "/admin/version", timeout_s=3.0) is not None
        except PrefectApiError:
            return False

    def settle(self, site: Site) -> None:
        """Install the automation that marks runs Crashed whose process died: a self-hosted server has none."""
        install_zombie_automation(api_url(site), auth_string(site))

    def clean(self, site: Site) -> None:
        """A stopped server leaves nothing outside its folder."""

    def url(self, site: Site) -> str:
        return f"http://127.0.0.1:{site.ports['api']}"


class PrefectApiError(Exception):
    """Raised when the server does not answer, or refuses; the message never holds the password."""


def api_url(site: Site) -> str:
    """The address for clients."""
    return f"http://127.0.0.1:{site.ports['api']}/api"


def auth_string(site: Site) -> str:
    """``user:password``, for server and clients alike."""
    return f"{USER}:{site.secrets['password']}"


def client_environment(site: Site) -> dict[str, str]:
    """What a process needs to talk to this server and to no other."""
    return {
        "PREFECT_API_URL": api_url(site),
        "PREFECT_API_AUTH_STRING": auth_string(site),
        "PREFECT_HOME": str(site.folder / "home"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    }


def without_prefect(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the user's own Prefect settings, which may point to another server."""
    return {name: value for name, value in environ.items() if not name.startswith("PREFECT_")}


def request(site: Site, method: str, path: str, body: Any = None, *, timeout_s: float = 20.0) -> Any:
    """:func:`request_api` of a local server, with its password."""
    return request_api(api_url(site), auth_string(site), method, path, body, timeout_s=timeout_s)


def request_api(url: str, auth: str, method: str, path: str, body: Any = None, *, timeout_s: float = 20.0) -> Any:
    """One call of a Prefect server's REST API; the decoded answer.

    A server whose SQLite is locked by its own recorders answers 503 and has stored nothing: it is asked again, as
    Prefect's own client does, while less than ``timeout_s`` has gone by.

    Args:
        url: address of the API, as in PREFECT_API_URL.
        auth: ``user:password``; empty for none.
        timeout_s: of one attempt, and after which no further one begins.

    Raises:
        PrefectApiError: no answer, or a refusal.
    """
    headers = {"Content-Type": "application/json"}
    if auth:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url.rstrip("/") + path, method=method, data=data, headers=headers)
    # A server on this machine is never behind a proxy.
    proxies: dict[str, str] | None = {} if url.startswith("http://127.0.0.1:") else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    deadline, failures = time.monotonic() + timeout_s, 0
    while True:
        try:
            with opener.open(call, timeout=timeout_s) as answer:
                content = answer.read()
            break
        except urllib.error.HTTPError as error:
            failures += 1
            wait_s = RetryPolicy().delay_s(failures)
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() + wait_s > deadline:
                raise PrefectApiError(f"{method} {path}: the Prefect server answered {error.code}") from None
            time.sleep(wait_s)
        except OSError as error:
            reason = type(error).__name__
            raise PrefectApiError(f"{method} {path}: no answer from the Prefect server ({reason})") from None
    try:
        return json.loads(content) if content else {}
    except json.JSONDecodeError:
        raise PrefectApiError(f"{method} {path}: the answer is not from a Prefect server") from None


def install_zombie_automation(url: str, auth: str) -> bool:
    """Install it on the server at ``url`` unless it is there; True if it was new. Raises as :func:`request_api`."""
    wanted = {"automations": {"name": {"any_": [ZOMBIE_AUTOMATION]}}}
    if request_api(url, auth, "POST", "/automations/filter", wanted):
        return False
    request_api(url, auth, "POST", "/automations/", _zombie_automation())
    return True


def _zombie_automation() -> dict[str, Any]:
    return {
        "name": ZOMBIE_AUTOMATION,
        "description": f"No event of a run for {ZOMBIE_AFTER_S} s after a heartbeat means that its process is gone.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.*"],
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": ZOMBIE_AFTER_S,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": "The heartbeat stopped: the process of this run is gone. Run it again; it resumes.",
            }
        ],
    }


def main() -> int:
    """``python -m infra.prefect_server``: install the automation on the server that the environment names."""
    try:
        new = install_zombie_automation(os.environ["PREFECT_API_URL"], os.environ.get("PREFECT_API_AUTH_STRING", ""))
    except KeyError:
        print("PREFECT_API_URL is not set", file=sys.stderr)
        return 2
    except PrefectApiError as error:
        print(error, file=sys.stderr)
        return 1
    print("installed" if new else "already installed", ZOMBIE_AUTOMATION, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
