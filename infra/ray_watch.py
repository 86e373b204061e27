"""Whether the Ray of a session is still there. Ray's own calls may wait for ever for one that is gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import psutil

from infra.processes import ProcessId

_PING_EVERY_S, _SILENT_S, _EMPTY_S = 5.0, 30.0, 60.0
_CORE = ("raylet", "gcs_server")


class RayWatch(Protocol):
    """Asked often; answers at once."""

    def lost(self) -> str | None:
        """Why the session is of no use any more, in words; None while it is."""


class LocalWatch:
    """Of a Ray that we started: its core processes must live.

    Args:
        members: processes of the session; those without which there is no Ray are picked.
    """

    def __init__(self, members: Iterable[ProcessId]) -> None:
        named = ((_name(member), member) for member in members)
        self._core = [(name, member) for name, member in named if name in _CORE]

    def lost(self) -> str | None:
        """See :class:`RayWatch`."""
        dead = next(((name, one) for name, one in self._core if one.process() is None), None)
        return None if dead is None else f"its process {dead[0]} ({dead[1].pid}) was killed or crashed"


class ClusterWatch:
    """Of a cluster that we joined: its head must answer, and machines for workers must be left.

    Args:
        resources: asks the head; may wait for ever, so a thread of its own does it.
    """

    def __init__(self, resources: Callable[[], Mapping[str, float]]) -> None:
        self._resources = resources
        self._answered_s = self._had_cpus_s = time.monotonic()
        self._done = threading.Event()
        threading.Thread(target=self._ping, name="ray-watch", daemon=True).start()

    def lost(self) -> str | None:
        """See :class:`RayWatch`."""
        now_s = time.monotonic()
        if now_s - self._answered_s > _SILENT_S:
            return f"its head has not answered for {now_s - self._answered_s:.0f} s"
        if now_s - self._had_cpus_s > _EMPTY_S:
            return f"no machine of it has been left for {now_s - self._had_cpus_s:.0f} s"
        return None

    def close(self) -> None:
        """Ask no more."""
        self._done.set()

    def _ping(self) -> None:
        while not self._done.wait(_PING_EVERY_S):
            try:
                found = self._resources()
            except Exception:  # noqa: BLE001 - no answer, whatever Ray calls it
                continue
            self._answered_s = time.monotonic()
            if found.get("CPU", 0) > 0:
                self._had_cpus_s = self._answered_s


class NoDeathNotices(logging.Filter):
    """Drops what Ray logs of a raylet's death, with pages of its internals: the run says it in a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record may pass."""
        return "Raylet is terminated" not in record.getMessage()


def _name(member: ProcessId) -> str:
    process = member.process()
    try:
        return "" if process is None else process.name()
    except psutil.Error:
        return ""
