"""Carry a plan out: the loop between the dispatcher, which decides, and the group, which works.

run_pool(plan, job, session=...)    one worker per processor or GPU slot, in Ray
run_serial(plan, job)               one worker in this process, the same otherwise
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal, Protocol

from infra.errors import ServiceError, StoreOutage, VisionmillError
from infra.outage import Outage, Patience
from infra.ray_session import RaySession
from infra.store import Store, open_store
from tasks.engine.clips import Handover
from tasks.engine.dispatch import Dispatcher, DispatchPolicy, Loss
from tasks.engine.hangs import HangLimits, HangWatch
from tasks.engine.heartbeat import StepCost, sweep
from tasks.engine.job import JobSpec, Outcome
from tasks.engine.pool_outcome import Lost, PoolOutcome
from tasks.engine.progress import Progress, ProgressMeter
from tasks.engine.worker_exit import loss_of_hung
from tasks.engine.worker_group import Done, Event, Gone, LocalGroup, Raised, Ready, WorkerGroup
from tasks.output.commit import DriverCommitter
from tasks.records import Receipt, Shard

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
Refusal = Callable[[], VisionmillError | None]

_TICK_S = 0.2
_HANGS_EVERY_S = 1.0
_OUTAGE_GRACE_S = 5.0  # for other shards, once a store was waited for in vain
STOPPING = "stopping after the items in hand; again to stop at once"
_IDLE_WORKER_S = 15.0  # then it goes home, if there is nothing left for it


def _nothing() -> None:
    return None


class OpenPlan(Protocol):
    """What the pool needs of a plan (:class:`tasks.ingest.plan.Plan`)."""

    @property
    def num_shards(self) -> int: ...

    def through(self, store: Store) -> OpenPlan:
        """The same plan, read from this store: the output, opened with patience."""
        ...

    def committed(self) -> set[str]:
        """Ids of the plan's shards that are committed."""
        ...

    def shards(self, skip: set[str]) -> Iterator[Shard]:
        """The others, in plan order."""
        ...


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What may be tuned without changing a row.

    Attributes:
        grace_s: how long running shards may go on after a request to stop; what they had is done again later.
        start_s: how long the first worker may take to be ready; a cluster may have to make room.
        start_failures: so many workers in a row that die while starting end the run.
        hangs: when a worker that makes no progress is ended.
    """

    policy: DispatchPolicy | None = None
    grace_s: float = 4.0
    start_s: float = 600.0
    start_failures: int = 3
    progress_every_s: float = 1.0
    hangs: HangLimits = field(default_factory=HangLimits)


def run_pool(
    plan: OpenPlan,
    job: JobSpec,
    *,
    session: RaySession,
    workers: int | Literal["auto"] = "auto",
    num_gpus: float = 0.0,
    on_progress: OnProgress | None = None,
    settings: PoolSettings | None = None,
    stop: threading.Event | None = None,
    refusal: Refusal = _nothing,
) -> PoolOutcome:
    """Carry out what is left of a plan with workers in Ray.

    SIGTERM or SIGINT (or ``stop``) drains: nothing new is handed out, running shards may finish within the grace
    period, the plan stays open. A second signal ends the run at once.

    Args:
        workers: "auto" is as many as fit, but never more than shards are left.
        num_gpus: of each worker; fractions share one GPU. Each takes one processor, too.
        on_progress: called about every ``settings.progress_every_s`` seconds, from this thread.
        refusal: asked all the time: why nothing more may be handed out, if so; the run ends with that error.

    Returns:
        What came of it; ``error`` says why it stopped early, if it did.

    Raises:
        ServiceError: the session can never run such workers.
    """
    from tasks.engine.ray_worker_group import RayGroup  # Ray: seconds that a run in this process need not wait

    session.require(num_workers=1 if workers == "auto" else workers, num_gpus=num_gpus)
    group = RayGroup(job, session, num_gpus=num_gpus, num_slots=None if workers == "auto" else workers)
    return _run(plan, job, group, on_progress, settings or PoolSettings(), stop or threading.Event(), refusal)


def run_serial(
    plan: OpenPlan,
    job: JobSpec,
    *,
    on_progress: OnProgress | None = None,
    settings: PoolSettings | None = None,
    stop: threading.Event | None = None,
    refusal: Refusal = _nothing,
) -> PoolOutcome:
    """As :func:`run_pool` with one worker in this process: an item that kills its worker kills this process."""
    return _run(plan, job, LocalGroup(job), on_progress, settings or PoolSettings(), stop or threading.Event(), refusal)


def _run(
    plan: OpenPlan,
    job: JobSpec,
    group: WorkerGroup,
    on_progress: OnProgress | None,
    settings: PoolSettings,
    stop: threading.Event,
    refusal: Refusal,
) -> PoolOutcome:
    try:
        with drain_on_signals(stop):
            return _PoolRun(plan, job, group, on_progress, settings, stop, refusal).carry_out()
    finally:
        group.close()
        sweep()  # of workers that died with their driver or before they were ready


@contextmanager
def drain_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``, a second one interrupts. Only the main thread may do that; others go without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _PoolRun:
    """The state of one run; every method runs in the driver's one thread."""

    def __init__(
        self,
        plan: OpenPlan,
        job: JobSpec,
        group: WorkerGroup,
        on_progress: OnProgress | None,
        settings: PoolSettings,
        stop: threading.Event,
        refusal: Refusal,
    ) -> None:
        self.group, self.settings, self.on_progress = group, settings, on_progress
        self.stop, self.refusal = stop, refusal
        self.begin_s = time.monotonic()
        self.is_running = False
        self.outage = ""  # of the output, as this process sees it
        output = open_store(job.output_uri, patience=Patience(job.outage_s, told=self._told))
        plan = plan.through(output)
        committed = plan.committed()
        self.dispatcher = Dispatcher(plan.shards(committed), settings.policy, ordered=job.carries_state)
        self.hangs = replace(settings.hangs, item_s=job.item_s if job.item_s is not None else settings.hangs.item_s)
        self.watches: dict[str, HangWatch] = {}
        self.costs: dict[str, StepCost] = {}  # by stage, of all workers so far
        self.outcome = PoolOutcome(shards_total=plan.num_shards, shards_before=len(committed))
        self.meter = ProgressMeter(plan.num_shards, len(committed), self.begin_s)
        self.committer = DriverCommitter(output) if job.driver_commits else None
        self.handover = Handover(output, job.version) if job.carries_state else None
        self.version = job.version
        self.starting: dict[str, float] = {}
        self.ready: dict[str, float] = {}  # since when it has nothing to do
        self.retiring: set[str] = set()
        self.usage: dict[str, Outcome] = {}  # the newest of each worker
        self.counted: dict[str, int] = {}  # items of each worker that receipts account for
        self.start_deaths: list[str] = []
        self.stopped_at_s: float | None = None
        self.reported_s = self.checked_s = float("-inf")

    def carry_out(self) -> PoolOutcome:
        """Until everything is committed, or the run must stop."""
        self.is_running = True
        try:
            while not self.dispatcher.finished and not self._out_of_grace():
                self._turn()
        except VisionmillError as error:  # of the plan or the output
            self.dispatcher.stop(error)
        self._report(last=True)
        return self._conclude()

    def _turn(self) -> None:
        self._drain()
        self._staff()
        self._hand_out()
        for event in self.group.wait(self._pause_s()):
            self._take(event)
        self._end_hung()
        self._report()

    # --- staff

    def _staff(self) -> None:
        """Start workers while shards wait for one; send those home that nothing is left for."""
        if not self.dispatcher.stopped and self.dispatcher.has_work:
            left = self.outcome.shards_total - self.outcome.shards_before - self._shards_done
            wanted = min(self.group.slots(), left, self.dispatcher.could_run)
            while len(self.starting) + len(self.ready) < wanted:
                self.starting[self.group.start()] = time.monotonic()
            self._check_start()
            return
        now_s = time.monotonic()
        for worker, since_s in list(self.ready.items()):
            if not self.dispatcher.running(worker) and now_s - since_s > _IDLE_WORKER_S:
                self._dismiss(worker)

    @property
    def _shards_done(self) -> int:
        return self.outcome.shards_committed + self.outcome.already_committed

    def _check_start(self) -> None:
        now_s = time.monotonic()
        if not self.ready and self.starting and now_s - min(self.starting.values()) > self.settings.start_s:
            self.dispatcher.stop(
                ServiceError(
                    f"no worker was ready within {self.settings.start_s:.0f} s",
                    hint="Is the cluster busy with other jobs, or a node without the model's weights?",
                )
            )

    def _dismiss(self, worker: str) -> None:
        self.ready.pop(worker, None)
        self.watches.pop(worker, None)
        self.retiring.discard(worker)
        self.group.dismiss(worker)

    # --- work

    def _hand_out(self) -> None:
        """Everybody gets a first shard before anybody gets a second."""
        now_s = time.monotonic()
        open_to = [worker for worker in self.ready if worker not in self.retiring]
        while open_to:
            open_to.sort(key=lambda worker: len(self.dispatcher.running(worker)))
            worker = open_to.pop(0)
            assignment = self.dispatcher.next(worker, now_s)
            if assignment is not None:
                self.group.assign(worker, assignment)
                open_to.append(worker)

    def _take(self, event: Event) -> None:
        now_s = time.monotonic()
        if isinstance(event, Ready):
            self._ready(event, now_s)
        elif isinstance(event, Done):
            self._done(event, now_s)
        elif isinstance(event, Gone):
            self._gone(event.worker, event.loss, now_s)
        elif event.attempt_id is not None:
            self.dispatcher.failed(event.worker, event.attempt_id, event.error, now_s)
            self._settle(event.worker, now_s)
        else:
            self.starting.pop(event.worker, None)
            self.dispatcher.stop(_start_error(event))

    def _ready(self, event: Ready, now_s: float) -> None:
        asked_s = self.starting.pop(event.worker)
        self.ready[event.worker] = now_s
        self.start_deaths.clear()
        self.outcome.worker_start_s.append(now_s - asked_s)
        if event.info.problem is not None and event.info.problem not in self.outcome.notes:
            self.outcome.notes.append(event.info.problem)
        self.meter.worker_ready(now_s)

    def _done(self, event: Done, now_s: float) -> None:
        worker, outcome = event.worker, event.outcome
        self.usage[worker] = outcome
        if outcome.receipt is None:
            self.outcome.note_usage(outcome)
            self.dispatcher.survived(worker, event.attempt_id, now_s)
        else:
            try:
                receipt = self._committed(outcome.receipt, outcome.part)
            except VisionmillError as error:
                self.dispatcher.failed(worker, event.attempt_id, error, now_s)
                self._settle(worker, now_s)
                return
            shard = self.dispatcher.completed(worker, event.attempt_id, receipt, now_s)
            if self.handover is not None and shard.continues is not None:
                self.handover.forget(shard.continues)
            self.outcome.add(receipt, outcome)
            self.meter.shard_done(receipt.rows, outcome.failures, receipt.quarantined)
            self.counted[worker] = self.counted.get(worker, 0) + receipt.rows
        if outcome.recycle is not None:
            self.retiring.add(worker)
        self._settle(worker, now_s)

    def _committed(self, receipt: Receipt, part: bytes | None) -> Receipt:
        """The receipt, after the driver has committed where workers may not."""
        if part is None or self.committer is None:
            return receipt
        outcome = self.committer.commit(self.version, receipt.shard_id, part, receipt.attempt_id)
        return replace(receipt, outcome=outcome)

    def _settle(self, worker: str, now_s: float) -> None:
        """A call of this worker ended: it is idle from now on, or goes, if it is due for replacement."""
        if worker in self.ready:
            self.ready[worker] = now_s
        if worker in self.retiring and not self.dispatcher.running(worker):
            self._note_usage(worker)
            self._dismiss(worker)
            self.outcome.recycled_workers += 1

    def _gone(self, worker: str, loss: Loss, now_s: float) -> None:
        if self.starting.pop(worker, None) is not None:
            self.start_deaths.append(loss.cause)
            if len(self.start_deaths) >= self.settings.start_failures:
                self.dispatcher.stop(
                    ServiceError(
                        f"{len(self.start_deaths)} workers in a row ended while starting; the last {loss.cause}",
                        hint="`visionmill doctor` checks the installation; the machine may be short of memory.",
                    )
                )
            return
        shards = tuple(a.shard.shard_id for a in self.dispatcher.running(worker))
        self.outcome.lost_workers.append(Lost(worker, loss.cause, loss.hung, shards))
        self.meter.worker_lost()
        self.ready.pop(worker, None)
        self.watches.pop(worker, None)
        self.retiring.discard(worker)
        self._note_usage(worker)
        self.dispatcher.lost(worker, loss, now_s)

    def _end_hung(self) -> None:
        now_s = time.monotonic()
        if now_s - self.checked_s < _HANGS_EVERY_S:
            return
        self.checked_s, beats = now_s, self.group.beats()
        for beat in beats.values():
            self.costs |= {stage: cost | self.costs.get(stage, cost) for stage, cost in beat.costs.items()}
        for worker in list(self.ready):
            watch = self.watches.setdefault(worker, HangWatch(self.hangs, now_s))
            if not self.dispatcher.running(worker):
                watch.has_no_work(now_s)
            elif hang := watch.look(beats.get(worker), now_s, self.costs):
                self.group.dismiss(worker)
                self._gone(worker, loss_of_hung(hang), now_s)

    # --- the end

    def _drain(self) -> None:
        if self.stop.is_set() and not self.dispatcher.stopped:
            self.outcome.drained = True
            logger.warning(STOPPING)
            self.dispatcher.stop()
        if not self.dispatcher.stopped and (error := self.refusal()) is not None:
            self.dispatcher.stop(error)
        if self.dispatcher.stopped and self.stopped_at_s is None:
            self.stopped_at_s = time.monotonic()

    def _out_of_grace(self) -> bool:
        grace_s = min(_OUTAGE_GRACE_S if isinstance(self.dispatcher.error, StoreOutage) else inf, self.settings.grace_s)
        return self.stopped_at_s is not None and time.monotonic() - self.stopped_at_s > grace_s

    def _conclude(self) -> PoolOutcome:
        for worker in list(self.usage):
            self._note_usage(worker)
        outcome, dispatcher = self.outcome, self.dispatcher
        outcome.finished = outcome.shards_before + self._shards_done >= outcome.shards_total
        outcome.error = None if outcome.finished else dispatcher.error
        if outcome.finished and self.handover is not None:
            self.handover.forget()
        outcome.quarantined_items = list(dispatcher.quarantined)
        outcome.attempts = list(dispatcher.attempts)
        now_s = time.monotonic()
        self.meter.under_way(0)
        outcome.seconds, outcome.items_per_s = now_s - self.begin_s, self.meter.rows_per_s(now_s)
        return outcome

    def _note_usage(self, worker: str) -> None:
        """A worker is gone: what it last said of its model's thread is added up."""
        usage = self.usage.pop(worker, None)
        if usage is not None:
            self.outcome.infer_busy_s += usage.infer_busy_s
            self.outcome.infer_idle_s += usage.infer_idle_s

    # --- progress

    def _told(self, outage: Outage | None) -> None:
        """The output does not answer this process: it is told here, because the loop waits for the answer meanwhile."""
        self.outage = "" if outage is None else str(outage)
        if self.is_running:
            self._report()

    def _pause_s(self) -> float:
        due_s = self.dispatcher.waiting_s(time.monotonic())
        return _TICK_S if due_s is None else max(0.01, min(_TICK_S, due_s))

    def _report(self, *, last: bool = False) -> None:
        now_s = time.monotonic()
        if self.on_progress is None or (now_s - self.reported_s < self.settings.progress_every_s and not last):
            return
        self.reported_s = now_s
        beats = {} if last else self.group.beats()
        self.meter.under_way(
            sum(max(0, beat.items_done - self.counted.get(worker, 0)) for worker, beat in beats.items())
        )
        busy = self.outcome.infer_busy_s + sum(usage.infer_busy_s for usage in self.usage.values())
        idle = self.outcome.infer_idle_s + sum(usage.infer_idle_s for usage in self.usage.values())
        self.on_progress(
            self.meter.read(
                now_s,
                workers=len(self.ready),
                in_flight=sum(len(self.dispatcher.running(worker)) for worker in self.ready),
                idle_share=idle / (busy + idle) if busy + idle else 0.0,
                stages=dict(Counter(working.stage for beat in beats.values() for working in beat.working)),
                outage=self.outage or next((beat.outage for beat in beats.values() if beat.outage), ""),
            )
        )


def _start_error(event: Raised) -> VisionmillError:
    """Why no worker of this job can start: its own words if they are ours, else the kind of error, plainly."""
    if isinstance(event.error, VisionmillError):
        return event.error
    return ServiceError(
        f"a worker could not load the model: {type(event.error).__name__}: {event.error}",
        hint="`visionmill models show NAME` tells what the model needs; `visionmill doctor` checks the installation.",
    )
