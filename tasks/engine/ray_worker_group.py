"""Workers as Ray actors: one process each, never restarted by Ray, spoken to in descriptors and receipts only."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.ray_session import RaySession
from tasks.engine.batches import DeviceLostError
from tasks.engine.dispatch import Loss
from tasks.engine.heartbeat import Heartbeat, read_heartbeat, remove_heartbeat
from tasks.engine.job import Assignment, JobSpec, Outcome, WorkerInfo
from tasks.engine.worker import Worker
from tasks.engine.worker_exit import Remains, loss_of_dead, read_remains
from tasks.engine.worker_group import Done, Event, Gone, Raised, Ready

_SLOTS_EVERY_S = 10.0
_GOODBYE_S = 2.0


class RayWorker:
    """The actor: a :class:`Worker` behind three calls. Made empty, so that what loading raises comes out as it is."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, job: JobSpec) -> WorkerInfo:
        """Load the model."""
        import ray

        worker = self._worker = Worker(job)
        node_id = ray.get_runtime_context().get_node_id()
        return WorkerInfo(os.getpid(), node_id, str(worker.beats.folder), worker.start_s, worker.problem)

    def process(self, assignment: Assignment) -> Outcome:
        """See :meth:`Worker.process`."""
        assert self._worker is not None
        return self._worker.process(assignment)

    def heartbeat(self) -> Heartbeat | None:
        """See :meth:`Worker.heartbeat`; answered while other calls run."""
        return None if self._worker is None else self._worker.heartbeat()

    def close(self) -> None:
        """Leave nothing behind on this machine."""
        if self._worker is not None:
            self._worker.close()


@dataclass(slots=True)
class _Member:
    actor: Any
    info: WorkerInfo | None = None
    calls: dict[Any, str | None] = field(default_factory=dict)  # reference -> attempt id; None is the start
    beat: Heartbeat | None = None
    beat_call: Any = None


class RayGroup:
    """The actors of one run. See :class:`tasks.engine.worker_group.WorkerGroup`.

    Args:
        num_gpus: of each worker; fractions share a GPU. Without, a worker takes one processor.
        num_slots: at most so many workers; None: as many as the session's resources allow, asked anew now and then.
    """

    def __init__(
        self, job: JobSpec, session: RaySession, *, num_gpus: float = 0.0, num_slots: int | None = None
    ) -> None:
        import ray

        self._ray, self._job, self._session = ray, job, session
        self._num_gpus, self._num_slots = num_gpus, num_slots
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count(1)
        self._slots, self._slots_at_s = 0, float("-inf")
        self._actor_class = ray.remote(RayWorker).options(
            num_cpus=1,
            num_gpus=num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=job.shards_in_flight + 2,  # a heartbeat and a goodbye must always get through
        )

    def slots(self) -> int:
        """See :class:`WorkerGroup`."""
        if self._num_slots is not None:
            return self._num_slots
        if time.monotonic() - self._slots_at_s > _SLOTS_EVERY_S:
            resources = self._ray.cluster_resources()
            cpus = int(resources.get("CPU", 0))
            gpus = int(resources.get("GPU", 0) / self._num_gpus + 1e-9) if self._num_gpus else cpus
            self._slots, self._slots_at_s = min(cpus, gpus), time.monotonic()
        return self._slots

    def start(self) -> str:
        """See :class:`WorkerGroup`."""
        name = f"worker-{next(self._numbers)}"
        member = self._members[name] = _Member(self._actor_class.remote())
        member.calls[member.actor.start.remote(self._job)] = None
        return name

    def assign(self, worker: str, assignment: Assignment) -> None:
        """See :class:`WorkerGroup`."""
        member = self._members[worker]
        member.calls[member.actor.process.remote(assignment)] = assignment.attempt_id

    def wait(self, timeout_s: float) -> list[Event]:
        """See :class:`WorkerGroup`."""
        self._session.check()
        owners = {call: name for name, member in self._members.items() for call in member.calls}
        if not owners:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        return [event for call in ready if (event := self._event(owners[call], call)) is not None]

    def _event(self, name: str, call: Any) -> Event | None:
        member = self._members.get(name)
        if member is None:
            return None  # it died of an earlier one of these
        attempt_id = member.calls.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, DeviceLostError):
                return Gone(name, self._bury(name, f"lost its device: {cause}"))
            return Raised(name, attempt_id, cause)
        except self._ray.exceptions.RayError as error:
            return Gone(name, self._bury(name, _words(error)))
        if isinstance(answer, WorkerInfo):
            member.info = answer
            return Ready(name, answer)
        assert attempt_id is not None
        return Done(name, attempt_id, answer)

    def dismiss(self, worker: str) -> None:
        """See :class:`WorkerGroup`."""
        self._end(worker)

    def beats(self) -> dict[str, Heartbeat]:
        """See :class:`WorkerGroup`. Read from the file on this machine, else asked for and taken when it came."""
        for member in self._members.values():
            if member.info is None:
                continue
            if self._session.is_local:
                member.beat = read_heartbeat(Path(member.info.heartbeat_folder)) or member.beat
            else:
                self._ask(member)
        return {name: member.beat for name, member in self._members.items() if member.beat is not None}

    def close(self) -> None:
        """See :class:`WorkerGroup`."""
        goodbyes = [m.actor.close.remote() for m in self._members.values() if m.info is not None and not m.calls]
        if goodbyes and not self._session.is_lost:
            self._ray.wait(goodbyes, num_returns=len(goodbyes), timeout=_GOODBYE_S)
        for name in list(self._members):
            self._end(name)

    # --- one worker

    def _ask(self, member: _Member) -> None:
        if member.beat_call is None:
            member.beat_call = member.actor.heartbeat.remote()
            return
        if self._ray.wait([member.beat_call], timeout=0)[0]:
            call, member.beat_call = member.beat_call, None
            try:
                member.beat = self._ray.get(call) or member.beat
            except self._ray.exceptions.RayError:
                return  # its death is noticed by its calls

    def _bury(self, name: str, words: str) -> Loss:
        loss = loss_of_dead(self._remains(self._members[name]), words)
        self._end(name)
        return loss

    def _end(self, name: str) -> None:
        member = self._members.pop(name)
        self._ray.kill(member.actor, no_restart=True)
        if member.info is not None and self._session.is_local:
            remove_heartbeat(Path(member.info.heartbeat_folder))

    def _remains(self, member: _Member) -> Remains:
        """What a worker left; of another machine through a task that must run there, if it still exists."""
        if member.info is None:
            return None, None
        if self._session.is_local:
            return read_remains(member.info.heartbeat_folder)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(member.info.node_id, soft=False)
        task = self._ray.remote(num_cpus=0, max_retries=0)(read_remains).options(scheduling_strategy=there)
        try:
            remains: Remains = self._ray.get(task.remote(member.info.heartbeat_folder), timeout=10.0)
        except self._ray.exceptions.RayError:
            return member.beat, None
        return remains


def _words(error: Exception) -> str:
    """What Ray knows about a death that left no last words; empty when that is nothing."""
    text = str(error)
    if "node has died" in text or "node was terminated" in text or "preempted" in text:
        return "was lost with its machine"
    if "OutOfMemory" in type(error).__name__ or "memory monitor" in text or "low on memory" in text:
        return "was killed because its machine ran out of memory"
    return ""
