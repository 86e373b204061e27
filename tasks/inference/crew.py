"""The workers of a run as the pool sees them: started, given work, waited for, ended. One in this process, or Ray's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tasks.inference.dispatch import Loss
from tasks.inference.job import Assignment, JobSpec, Outcome, WorkerInfo
from tasks.inference.obituary import loss_of_hung
from tasks.inference.pulse import Heartbeat
from tasks.inference.worker import Worker


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


class Crew(Protocol):
    """What the pool asks of its workers."""

    def slots(self) -> int:
        """How many workers fit now; may change while a cluster grows or shrinks."""

    def start(self) -> str:
        """Begin to start a worker; its name. Ready, Raised or Gone will follow."""

    def assign(self, worker: str, assignment: Assignment) -> None:
        """Begin a call; Done, Raised or Gone will follow."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened; [] after ``timeout_s``."""

    def hung(self, worker: str, assignment: Assignment, taken_s: float) -> Loss:
        """Look what a worker is stuck in, then kill it."""

    def dismiss(self, worker: str) -> None:
        """End a worker that has nothing to do."""

    def beats(self) -> dict[str, Heartbeat]:
        """The newest heartbeat of each living worker."""

    def close(self) -> None:
        """End all workers, whatever they do."""


class LocalCrew:
    """One worker in this process: for tests, debugging and machines without Ray. A crash is the driver's crash."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._calls = ThreadPoolExecutor(job.shards_in_flight, thread_name_prefix="shard")

    def slots(self) -> int:
        """One."""
        return 1

    def start(self) -> str:
        """Load the model in a thread of its own."""
        threading.Thread(target=self._load, name="load-model", daemon=True).start()
        return "local"

    def assign(self, worker: str, assignment: Assignment) -> None:
        """See :class:`Crew`."""
        assert self._worker is not None
        process = self._worker.process
        self._calls.submit(self._report, worker, assignment, process)

    def wait(self, timeout_s: float) -> list[Event]:
        """See :class:`Crew`."""
        try:
            events = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def hung(self, worker: str, assignment: Assignment, taken_s: float) -> Loss:
        """Nobody can kill a thread: the worker is left behind, stuck, and a new one takes over."""
        beat = self._worker.heartbeat() if self._worker is not None else None
        self.dismiss(worker)
        self._calls = ThreadPoolExecutor(self._job.shards_in_flight, thread_name_prefix="shard")
        return loss_of_hung((beat, None), assignment.shard.shard_id, taken_s)

    def dismiss(self, worker: str) -> None:
        """See :class:`Crew`."""
        if self._worker is not None:
            self._worker.pipeline.close(timeout_s=0.5)
            self._worker.pulse.close()
            self._worker = None

    def beats(self) -> dict[str, Heartbeat]:
        """See :class:`Crew`."""
        beat = self._worker.heartbeat() if self._worker is not None else None
        return {} if beat is None else {"local": beat}

    def close(self) -> None:
        """See :class:`Crew`."""
        self.dismiss("local")
        self._calls.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> None:
        try:
            self._worker = Worker(self._job, own_process=False)
        except Exception as error:  # noqa: BLE001 - handed to the pool, which knows what to do
            self._events.put(Raised("local", None, error))
            return
        pulse = self._worker.pulse
        beat = pulse.read()
        info = WorkerInfo(beat.pid if beat else 0, "local", str(pulse.folder), self._worker.start_s)
        self._events.put(Ready("local", info))

    def _report(self, worker: str, assignment: Assignment, process: Callable[[Assignment], Outcome]) -> None:
        try:
            self._events.put(Done(worker, assignment.attempt_id, process(assignment)))
        except Exception as error:  # noqa: BLE001 - handed to the pool, which knows what to do
            self._events.put(Raised(worker, assignment.attempt_id, error))
