"""Ends a local Ray whose driver was killed: ``python -m infra.ray_reaper FOLDER``, the driver at the end of stdin.

Ray's raylet ends at once when its driver is gone, but its two agents first try for over a minute to report that to a
server which is gone as well. Meanwhile they take memory and processor time from the run that is started next.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.processes import ProcessId


@contextmanager
def reaped(folder: Path, members: Iterable[ProcessId]) -> Iterator[int]:
    """Inside the block, the death of this process, by whatever signal, is that of ``members`` and of ``folder``.

    Yields:
        The pid of the process that sees to it.
    """
    reaper = subprocess.Popen(
        [sys.executable, "-m", "infra.ray_reaper", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # the driver's Ctrl-C is not for it
    )
    assert reaper.stdin is not None
    reaper.stdin.write(json.dumps([[one.pid, one.create_time] for one in members]) + "\n")
    reaper.stdin.flush()
    try:
        yield reaper.pid
    finally:
        reaper.stdin.close()
        reaper.wait()


def main() -> None:
    """Wait until the driver closes stdin or dies, then end what it has not ended itself."""
    members = [ProcessId(pid, created) for pid, created in json.loads(sys.stdin.readline() or "[]")]
    sys.stdin.read()
    alive = [process for process in (one.process() for one in members) if process is not None]
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=10.0)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
