"""The pattern behind every standing service, tried on a small real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import ServiceError
from infra.processes import ProcessId, file_lock, free_ports, port_is_free, rotate_log, spawn, stop
from infra.standing import Site, StandingService, any_free_ports

SERVER = """
import os, signal, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if os.environ["BEHAVIOUR"] == "broken":
    print("cannot open the database: secret_token=hidden-in-the-log", flush=True)
    sys.exit(3)
if os.environ["BEHAVIOUR"] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["KEY"].encode())
    def log_message(self, *a): pass
print("up", flush=True)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Echo:
    """A service that answers with its secret."""

    name = "echo"
    port_names: tuple[str, ...] = ("http",)
    secret_names: tuple[str, ...] = ("key",)

    def __init__(self, behaviour: str = "good") -> None:
        self.behaviour = behaviour
        self.starts = 0
        self.settled = 0

    def choose_ports(self) -> dict[str, int]:
        return any_free_ports(self.port_names)

    def command(self, site: Site) -> tuple[list[str], dict[str, str]]:
        self.starts += 1
        env = {"KEY": site.secrets["key"], "BEHAVIOUR": self.behaviour, "PATH": os.environ["PATH"]}
        return [sys.executable, "-c", SERVER, str(site.ports["http"])], env

    def prepare(self, site: Site) -> None:
        pass

    def is_healthy(self, site: Site) -> bool:
        try:
            with urllib.request.urlopen(self.url(site), timeout=2) as answer:
                return answer.read().decode() == site.secrets["key"]
        except OSError:
            return False

    def settle(self, site: Site) -> None:
        self.settled += 1

    def clean(self, site: Site) -> None:
        pass

    def url(self, site: Site) -> str:
        return f"http://127.0.0.1:{site.ports['http']}"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StandingService]:
    one = StandingService(Echo(), tmp_path)
    yield one
    one.stop(timeout_s=1.0)


def test_it_starts_once_and_is_found_again(tmp_path: Path, service: StandingService) -> None:
    site = service.ensure(timeout_s=60)
    assert service.status().state == "running"
    again = Echo()
    other = StandingService(again, tmp_path).ensure(timeout_s=60)
    assert (other.ports, other.secrets) == (site.ports, site.secrets)
    assert (again.starts, again.settled) == (0, 0)


def test_many_callers_at_once_share_one_process(tmp_path: Path, service: StandingService) -> None:
    recipe, pids = Echo(), []

    def ensure() -> None:
        one = StandingService(recipe, tmp_path)
        one.ensure(timeout_s=60)
        pids.append(one.status().pid)

    threads = [threading.Thread(target=ensure) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert recipe.starts == 1
    assert len(set(pids)) == 1


def test_it_outlives_the_process_that_started_it(tmp_path: Path, service: StandingService) -> None:
    program = f"""
        from pathlib import Path
        from infra.standing import StandingService
        from tests.infra.test_standing import Echo
        StandingService(Echo(), Path({str(tmp_path)!r})).ensure(timeout_s=60)
    """
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=root)
    assert service.status().state == "running"
    assert os.getsid(service.status().pid) != os.getsid(0)


def test_ports_and_secrets_are_remembered_and_private(tmp_path: Path, service: StandingService) -> None:
    first = service.ensure(timeout_s=60)
    assert service.stop(timeout_s=5)
    assert service.status().state == "stopped"
    second = service.ensure(timeout_s=60)
    assert (second.ports, second.secrets) == (first.ports, first.secrets)
    folder = tmp_path / "echo"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {
        stat.S_IMODE((folder / name).stat().st_mode) for name in ("secrets.json", "process.json", "ports.json")
    } == {0o600}
    assert first.secrets["key"] not in repr(first)
    assert len(first.secrets["key"]) >= 32


def test_a_port_that_was_taken_meanwhile_is_replaced(service: StandingService) -> None:
    first = service.ensure(timeout_s=60)
    service.stop(timeout_s=5)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.ports["http"]))
        squatter.listen()
        assert not port_is_free(first.ports["http"])
        second = service.ensure(timeout_s=60)
    assert second.ports != first.ports
    assert service.status().state == "running"


def test_a_killed_service_is_started_anew(service: StandingService) -> None:
    service.ensure(timeout_s=60)
    killed = service.status().pid
    os.kill(killed, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(killed)] if psutil.pid_exists(killed) else [], timeout=5)
    assert service.status().state == "stopped"
    service.ensure(timeout_s=60)
    assert service.status().state == "running"
    assert service.status().pid != killed


def test_a_reused_pid_is_not_taken_for_the_service(tmp_path: Path, service: StandingService) -> None:
    service.ensure(timeout_s=60)
    service.stop(timeout_s=5)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (tmp_path / "echo" / "process.json").write_text(
            json.dumps({"pid": bystander.pid, "create_time": psutil.Process(bystander.pid).create_time() - 100})
        )
        assert service.status().state == "stopped"
        assert not service.stop(timeout_s=1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_service_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    service = StandingService(Echo("stubborn"), tmp_path)
    service.ensure(timeout_s=60)
    leader = psutil.Process(service.status().pid)
    deadline = time.monotonic() + 30
    while not leader.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    members = [leader, *leader.children(recursive=True)]
    assert len(members) == 2
    assert service.stop(timeout_s=0.5)
    assert all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in members)


def test_a_service_that_cannot_start_says_why_without_its_secrets(tmp_path: Path) -> None:
    recipe = Echo("broken")
    service = StandingService(recipe, tmp_path)
    with pytest.raises(ServiceError, match="cannot open the database") as caught:
        service.ensure(timeout_s=60)
    assert "hidden-in-the-log" not in str(caught.value)
    assert "service.log" in caught.value.hint
    assert recipe.starts == 3  # with other ports each time: one may have been taken
    assert service.status().state == "stopped"


def test_a_program_that_does_not_exist_is_a_service_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no-such-program"):
        spawn(["/no-such-program"], env={}, log=tmp_path / "log", cwd=tmp_path)


def test_a_lock_is_exclusive_and_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = """
        import fcntl, sys, time
        file = open(sys.argv[1], "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("held", flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(lock)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ServiceError, match="held"), file_lock(lock, timeout_s=0.2):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with file_lock(lock, timeout_s=5.0):
        pass


def test_stopping_what_is_gone_is_no_error() -> None:
    assert not stop(ProcessId(2**22 - 1, 1.0), timeout_s=1)


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port_is_free(port) for port in ports)


def test_a_large_log_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.processes.LOG_LIMIT_BYTES", 10)
    log = tmp_path / "service.log"
    log.write_text("x" * 11)
    rotate_log(log)
    assert not log.exists()
    assert (tmp_path / "service.log.1").read_text() == "x" * 11
