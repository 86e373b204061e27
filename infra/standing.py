"""One pattern for every standing local service: remembered ports, generated secrets, health probe, lock, log, stop."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from infra.errors import ServiceError
from infra.processes import ProcessId, file_lock, free_ports, port_is_free, spawn, stop
from infra.redaction import redact
from infra.telling import tell

START_ATTEMPTS = 3  # a port can be taken between choosing and binding it


@dataclass(frozen=True, slots=True)
class Site:
    """Where one service lives: its folder, its ports by name, its generated secrets (never shown)."""

    folder: Path
    ports: Mapping[str, int]
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def log(self) -> Path:
        """The file that takes the service's output."""
        return self.folder / "service.log"


class Recipe(Protocol):
    """What differs between services."""

    name: str
    port_names: tuple[str, ...]
    secret_names: tuple[str, ...]

    def choose_ports(self) -> dict[str, int]:
        """Free ports for every name."""

    def command(self, site: Site) -> tuple[list[str], dict[str, str]]:
        """Program with arguments, and its whole environment. Secrets go into the environment, never into arguments."""

    def is_healthy(self, site: Site) -> bool:
        """Ask the service something that only it, with our secrets, answers rightly. Quick; no exceptions."""

    def prepare(self, site: Site) -> None:
        """Before a start: write configuration."""

    def settle(self, site: Site) -> None:
        """After the first healthy answer of a start: whatever the service needs to be told."""

    def clean(self, site: Site) -> None:
        """After a stop: remove what the service leaves outside its folder."""

    def url(self, site: Site) -> str:
        """Where people and clients find it; empty if it has no address."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of ``visionmill status``. ``state``: running, not answering, stopped."""

    name: str
    state: str
    url: str
    pid: int | None
    ports: Mapping[str, int]
    log: Path
    started_at: float | None  # seconds since the epoch


class StandingService:
    """One service of one state directory."""

    def __init__(self, recipe: Recipe, state_dir: Path) -> None:
        self._recipe = recipe
        self._folder = state_dir / recipe.name
        self._record = self._folder / "process.json"

    @property
    def name(self) -> str:
        return self._recipe.name

    def ensure(self, *, timeout_s: float) -> Site:
        """The running service; started if it is not there. Concurrent callers wait for each other and share it.

        Raises:
            ServiceError: it did not come up; quotes the end of its log.
        """
        _private_folder(self._folder)
        with file_lock(self._folder / "lock", timeout_s=timeout_s + 30.0):
            site = self._site()
            if self._identity() is not None and _wait_healthy(self._recipe, site, self._identity, 5.0):
                return site
            self._stop_recorded(10.0)
            return self._start(timeout_s)

    def stop(self, *, timeout_s: float) -> bool:
        """Stop it, if it runs; True if it did."""
        if not self._folder.exists():
            return False
        with file_lock(self._folder / "lock", timeout_s=timeout_s + 30.0):
            return self._stop_recorded(timeout_s)

    def status(self) -> ServiceStatus:
        """What is known without starting anything."""
        record = self._read_record()
        site = self._site() if self._folder.exists() else Site(self._folder, {}, {})
        identity = self._identity()
        state = "stopped" if identity is None else "running" if self._recipe.is_healthy(site) else "not answering"
        return ServiceStatus(
            self.name, state, self._recipe.url(site) if identity else "", identity.pid if identity else None,
            site.ports, site.log,
            record.get("started_at") if identity else None,
        )  # fmt: skip

    def running_site(self) -> Site | None:
        """Ports and secrets if the process is alive, else None. No probe."""
        return self._site() if self._identity() is not None else None

    def remembered_site(self) -> Site | None:
        """Ports and secrets of the last start, running or not; None if it never ran here."""
        return self._site() if (self._folder / "ports.json").exists() else None

    def _start(self, timeout_s: float) -> Site:
        tell(f"starting the service {self.name}")
        for attempt in range(START_ATTEMPTS):
            site = self._site(new_ports=attempt > 0)
            self._recipe.prepare(site)
            argv, env = self._recipe.command(site)
            identity = spawn(argv, env=env, log=site.log, cwd=self._folder)
            self._write_record(identity)
            if _wait_healthy(self._recipe, site, self._identity, timeout_s):
                self._recipe.settle(site)
                return site
            died = self._identity() is None
            self._stop_recorded(5.0)
            if not died:
                break
        raise ServiceError(
            f"{self.name} did not come up within {timeout_s:.0f} s; its log ends with: {log_tail(site.log)}",
            hint=f"See {site.log}.",
        )

    def _stop_recorded(self, timeout_s: float) -> bool:
        identity = self._identity()
        stopped = stop(identity, timeout_s=timeout_s) if identity else False
        self._record.unlink(missing_ok=True)
        if self._folder.exists():
            self._recipe.clean(self._site())
        return stopped

    # --- what is remembered -------------------------------------------------------------------------------------

    def _site(self, *, new_ports: bool = False) -> Site:
        return Site(self._folder, self._ports(new_ports), self._secrets())

    def _ports(self, renew: bool) -> dict[str, int]:
        """The remembered ports; chosen anew when one of them is taken and we are about to start."""
        path = self._folder / "ports.json"
        ports = _read_json(path)
        complete = all(name in ports for name in self._recipe.port_names)
        idle = self._identity() is None
        if complete and not renew and (not idle or all(port_is_free(ports[name]) for name in self._recipe.port_names)):
            return {name: int(ports[name]) for name in self._recipe.port_names}
        chosen = self._recipe.choose_ports()
        write_private(path, json.dumps(chosen))
        return chosen

    def _secrets(self) -> dict[str, str]:
        path = self._folder / "secrets.json"
        known = {name: str(value) for name, value in _read_json(path).items()}
        missing = [name for name in self._recipe.secret_names if name not in known]
        if missing:
            known |= {name: secrets.token_urlsafe(32) for name in missing}
            write_private(path, json.dumps(known))
        return known

    def _identity(self) -> ProcessId | None:
        record = self._read_record()
        if not record:
            return None
        identity = ProcessId(int(record["pid"]), float(record["create_time"]))
        return identity if identity.process() is not None else None

    def _read_record(self) -> dict[str, Any]:
        return _read_json(self._record)

    def _write_record(self, identity: ProcessId) -> None:
        record = {"pid": identity.pid, "create_time": identity.create_time, "started_at": time.time()}
        write_private(self._record, json.dumps(record))


def any_free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """One free port for each name, without further wishes."""
    return dict(zip(names, free_ports(len(names)), strict=True))


def _wait_healthy(recipe: Recipe, site: Site, identity: Any, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if recipe.is_healthy(site):
            return True
        if identity() is None:
            return False  # it died: no reason to wait on
        time.sleep(0.1)
    return False


def _private_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # of an earlier time


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` in one step by a file that only its owner can read."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(scratch, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def log_tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, on one line; empty if there is none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    except FileNotFoundError:
        return "(no log)"
    return redact(" | ".join(line.strip() for line in text.splitlines()[-lines:])) or "(empty log)"
