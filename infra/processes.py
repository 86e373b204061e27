"""Start processes that outlive us, know them again by pid and creation time, stop them with all their children."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.errors import ServiceError

LOG_LIMIT_BYTES = 20 << 20


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process and when it was created: pids are reused, pairs are not."""

    pid: int
    create_time: float

    def process(self) -> psutil.Process | None:
        """The live process; None if it ended, is a zombie, or the pid belongs to another process by now."""
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.create_time and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if alive else None


def spawn(argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path) -> ProcessId:
    """Start ``argv`` in a session of its own, so that it outlives us and our terminal. Output goes to ``log``.

    Raises:
        ServiceError: the program cannot be executed.
    """
    rotate_log(log)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, close_fds=True,
            )  # fmt: skip
        except OSError as error:
            raise ServiceError(
                f"cannot start {argv[0]}: {error.strerror}", hint="Reinstall the locked requirements."
            ) from error
    # The child is left to run; without this, Popen's destructor warns about it.
    child.returncode = 0
    return ProcessId(child.pid, _create_time(child.pid))


def _create_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0  # it is gone already: never equal to a live process


def rotate_log(log: Path) -> None:
    """Keep one old log beside the current one once it is large."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(log.suffix + ".1"))


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all its descendants; what vanished meanwhile is left out."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def stop(identity: ProcessId, *, timeout_s: float) -> bool:
    """SIGTERM, then SIGKILL for what is left of the tree after ``timeout_s``; True if there was something to stop."""
    process = identity.process()
    if process is None:
        return False
    members = tree(process)
    _signal([process], terminate=True)
    _, alive = psutil.wait_procs(members, timeout=timeout_s)
    # Children that were born during the wait belong to a member that is still alive.
    stubborn = {member.pid: member for leader in alive for member in tree(leader)} | {p.pid: p for p in alive}
    _signal(list(stubborn.values()), terminate=False)
    psutil.wait_procs(list(stubborn.values()), timeout=5.0)
    return True


def _signal(processes: list[psutil.Process], *, terminate: bool) -> None:
    for process in processes:
        try:
            process.terminate() if terminate else process.kill()
        except psutil.NoSuchProcess:
            continue


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports of the loopback interface that nobody listens on at this moment."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_is_free(port: int) -> bool:
    """Whether a listener could bind ``port`` on the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listeners(processes: list[psutil.Process]) -> list[tuple[int, str, int]]:
    """Listening TCP sockets of ``processes`` as (pid, address, port)."""
    found: list[tuple[int, str, int]] = []
    for process in processes:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        found += [
            (process.pid, connection.laddr.ip, connection.laddr.port)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        ]
    return found


def is_loopback(address: str) -> bool:
    """Whether a listening address is reachable from this machine only."""
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


@contextmanager
def file_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` across processes; it ends with the holder, however that dies.

    Raises:
        ServiceError: somebody else held it for ``timeout_s``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"another process has held {path} for {timeout_s:.0f} s",
                        hint="Does a start hang? See its log.",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
