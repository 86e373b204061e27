"""The workers of a run as the pool sees them: started, given work, waited for, ended. One in this process, or Ray's."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tasks.engine.dispatch import Loss
from tasks.engine.heartbeat import Heartbeat
from tasks.engine.job import Assignment, JobSpec, Outcome, WorkerInfo
from tasks.engine.worker import Worker


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded its model."""

    worker: str
    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class Done:
    """A call came back."""

    worker: str
    attempt_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Raised:
    """A call raised, and the worker lives. ``attempt_id`` None: it could not be started at all."""

    worker: str
    attempt_id: str | None
    error: Exception


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is dead."""

    worker: str
    loss: Loss


Event = Ready | Done | Raised | Gone


class WorkerGroup(Protocol):
    """What the pool asks of its workers."""

    def slots(self) -> int:
        """How many workers fit now; may change while a cluster grows or shrinks."""

    def start(self) -> str:
        """Begin to start a worker; its name. Ready, Raised or Gone will follow."""

    def assign(self, worker: str, assignment: Assignment) -> None:
        """Begin a call; Done, Raised or Gone will follow."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened; [] after ``timeout_s``."""

    def dismiss(self, worker: str) -> None:
        """End a worker, whatever it does."""

    def beats(self) -> dict[str, Heartbeat]:
        """The newest heartbeat of each living worker."""

    def close(self) -> None:
        """End all workers, whatever they do."""


class LocalGroup:
    """One worker in this process: for tests, debugging and machines without Ray. A crash is the driver's crash."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._numbers = itertools.count(1)
        self._name = ""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def slots(self) -> int:
        """One."""
        return 1

    def start(self) -> str:
        """Load the model in a thread of its own."""
        self._name = f"local-{next(self._numbers)}"
        threading.Thread(target=self._load, args=(self._name,), name="load-model", daemon=True).start()
        return self._name

    def assign(self, worker: str, assignment: Assignment) -> None:
        """See :class:`WorkerGroup`. In a daemon thread: if stuck in native code, it must not keep the process alive."""
        assert self._worker is not None
        arguments = (worker, assignment, self._worker.process)
        threading.Thread(
            target=self._report, args=arguments, name=f"shard-{assignment.shard.index}", daemon=True
        ).start()

    def wait(self, timeout_s: float) -> list[Event]:
        """See :class:`WorkerGroup`. What a dismissed worker still says is not passed on."""
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return [event for event in events if event.worker == self._name]

    def dismiss(self, worker: str) -> None:
        """See :class:`WorkerGroup`. Nobody can kill a thread: one that is stuck is left behind."""
        if self._worker is not None and worker == self._name:
            self._worker.close(timeout_s=0.5)
            self._worker, self._name = None, ""

    def beats(self) -> dict[str, Heartbeat]:
        """See :class:`WorkerGroup`."""
        beat = self._worker.heartbeat() if self._worker is not None else None
        return {} if beat is None else {self._name: beat}

    def close(self) -> None:
        """See :class:`WorkerGroup`."""
        self.dismiss(self._name)

    def _load(self, name: str) -> None:
        try:
            worker = Worker(self._job, own_process=False)
        except Exception as error:  # noqa: BLE001 - handed to the pool, which knows what to do
            self._events.put(Raised(name, None, error))
            return
        self._worker = worker
        info = WorkerInfo(os.getpid(), "local", str(worker.beats.folder), worker.start_s, worker.problem)
        self._events.put(Ready(name, info))

    def _report(self, worker: str, assignment: Assignment, process: Callable[[Assignment], Outcome]) -> None:
        try:
            self._events.put(Done(worker, assignment.attempt_id, process(assignment)))
        except Exception as error:  # noqa: BLE001 - handed to the pool, which knows what to do
            self._events.put(Raised(worker, assignment.attempt_id, error))
