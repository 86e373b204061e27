"""One bounded pipeline of stages: threads that overlap, bytes that are counted, one way for errors to come out.

    submit(values) -> Job     fetch --> decode --> infer --> encode     Job.results() -> values, in order
                              threads   threads    1 thread   threads
                                 \\-- budgets ---/  batches

Why it cannot lock up: a byte budget belongs to an edge. Bytes are taken before an output is made and given back when
the next stage is through with it, so each stage waits only for stages further down, and the last one waits for nobody
(results are counted but never waited for; what waits for them is the *admission* of younger jobs). Bytes that only wait
for company in a batch stop nobody: where all that is out on an edge does so, one more output passes above the limit.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tasks.engine.batches import Batcher, Group
from tasks.engine.byte_budget import ByteBudget, Tally
from tasks.engine.stage import BatchStage, Stage, StageClock

_END = object()


class JobCancelledError(Exception):
    """Raised by :meth:`Job.results` when the job was cancelled or the pipeline closed; the job itself is fine."""


@dataclass(slots=True)
class _Parcel:
    job: Job
    path: tuple[int, ...]  # index of the submitted value, then of each output of a stage that yields many
    value: Any
    group: Group
    budget: ByteBudget | None = None
    size_bytes: int = 0

    @property
    def order(self) -> tuple[int, ...]:
        return (self.job.number, *self.path)


class Job(AbstractContextManager["Job"]):
    """The values of one submit on their way; made by :meth:`Pipeline.submit`, used as a context manager."""

    def __init__(
        self, pipeline: Pipeline, number: int, pending: deque[tuple[int, Any]], groups: list[Group], one_by_one: bool
    ) -> None:
        self.number, self.pending, self.groups, self.one_by_one = number, pending, groups, one_by_one
        self.alive = [0] * len(pipeline.clocks)  # parcels at or waiting for each stage
        self.arriving = Counter(groups)  # values and parcels of a group that are not at the batch stage yet
        self.done: list[tuple[tuple[int, ...], Any]] = []
        self.kept_bytes = 0
        self.stage_seconds: dict[str, float] = dict.fromkeys(pipeline.clocks, 0.0)
        self.error: BaseException | None = None  # set: the parcels are to be dropped
        self._pipeline = pipeline

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_done(self) -> int:
        """Results so far."""
        return len(self.done)

    def results(self) -> list[Any]:
        """Wait, then return every result in the order of the submitted values; raises the first error of any stage."""
        self._pipeline.wait(self)
        if self.error is not None:
            raise self.error
        return [value for _, value in sorted(self.done, key=lambda pair: pair[0])]

    def keep(self, amount_bytes: int) -> None:
        """Count bytes made from the results (an encoded file) until :meth:`close`; never waits."""
        self._pipeline.keep(self, amount_bytes)

    def cancel(self, error: BaseException | None = None) -> None:
        """Drop what is left; :meth:`results` raises ``error`` (:class:`JobCancelledError` if None)."""
        self._pipeline.cancel(self, error or JobCancelledError("the job was cancelled"))

    def close(self) -> None:
        """Cancel if still running, and give the results' bytes back."""
        self._pipeline.forget(self)

    def is_finished(self) -> bool:
        """Whether nothing of the job is on the way any more."""
        return not self.pending and not any(self.alive)


class Pipeline:
    """The stages with their threads; lives as long as its worker and serves several jobs at once, oldest first.

    One stage is a :class:`BatchStage`, neither the first nor the last.
    """

    def __init__(self, stages: Sequence[Stage | BatchStage]) -> None:
        batching = [i for i, stage in enumerate(stages) if isinstance(stage, BatchStage)]
        if len(batching) != 1 or batching[0] in (0, len(stages) - 1):
            raise ValueError("a pipeline has one batch stage, with others before and behind it")
        self._stages, self._batch_at, self._last = list(stages), batching[0], len(stages) - 1
        self._batch_stage: BatchStage = stages[self._batch_at]  # type: ignore[assignment]
        self._lock, self._tally = threading.RLock(), Tally()
        self._ready = [threading.Condition(self._lock) for _ in stages]
        self._finished = threading.Condition(self._lock)
        self._queues: list[deque[_Parcel]] = [deque() for _ in stages]
        self._batcher: Batcher[_Parcel] = Batcher(self._batch_stage.limit_of)
        self._budgets = [ByteBudget(stage.budget_bytes, self._lock, self._tally) for stage in stages]
        self._budgets[self._batch_at - 1].idle = self._batcher.waiting_bytes
        self._jobs: list[Job] = []
        self._counter = 0
        self._closed = False
        self.clocks = {stage.name: StageClock() for stage in stages}
        self._threads = [
            threading.Thread(target=self._loop, args=(i,), name=f"{stage.name}-{n}", daemon=True)
            for i, stage in enumerate(stages)
            for n in range(stage.threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- what callers use

    @property
    def bytes_in_flight(self) -> int:
        """Bytes on all edges now, results that are kept included."""
        return self._tally.used_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that these have been."""
        return self._tally.peak_bytes

    def submit(self, values: Iterable[Any], *, one_by_one: bool = False) -> Job:
        """Queue the values of a job behind those of older jobs.

        With ``one_by_one`` the next value enters when the one before has left: slow, but after a crash it is plain
        which one was being worked on.
        """
        with self._lock:
            if self._closed:
                raise JobCancelledError("the pipeline is closed")
            self._counter += 1
            pending = deque(enumerate(values))
            groups = [(at, at + 1) if one_by_one else self._batch_stage.group_of(at, value) for at, value in pending]
            job = Job(self, self._counter, pending, groups, one_by_one)
            self._jobs.append(job)
            self._notify_all()
            return job

    def wait(self, job: Job) -> None:
        """Return when the job is finished; when it was cancelled, as soon as nobody works on it any more."""
        with self._finished:
            self._finished.wait_for(lambda: job.is_finished() or self._closed)

    def keep(self, job: Job, amount_bytes: int) -> None:
        """See :meth:`Job.keep`."""
        with self._lock:
            job.kept_bytes += amount_bytes
            self._budgets[-1].keep(amount_bytes)

    def cancel(self, job: Job, error: BaseException) -> None:
        """See :meth:`Job.cancel`. The first error stays."""
        with self._lock:
            if job.is_finished() or job.error is not None:
                return
            job.error = error
            job.pending.clear()
            for i, queue in enumerate(self._queues):
                for parcel in [p for p in queue if p.job is job]:
                    queue.remove(parcel)
                    self._retire(parcel, i)
            for parcel in self._batcher.drop(lambda p: p.job is job):
                self._retire(parcel, self._batch_at)
            self._notify_all()

    def forget(self, job: Job) -> None:
        """See :meth:`Job.close`."""
        with self._lock:
            self.cancel(job, JobCancelledError("the job was closed"))
            if job in self._jobs:
                self._jobs.remove(job)
            job.done.clear()
            self._budgets[-1].release(job.kept_bytes)
            job.kept_bytes = 0
            self._notify_all()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Cancel all jobs and end the threads; a thread stuck in its work is left behind (they are daemons)."""
        with self._lock:
            self._closed = True
            for job in list(self._jobs):
                self.cancel(job, JobCancelledError("the pipeline is closed"))
            self._notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # --- the threads

    def _loop(self, i: int) -> None:
        step = self._step_batch if i == self._batch_at else self._step
        while True:
            parcels = self._take(i)
            if not parcels:
                return
            try:
                step(i, parcels)
            except BaseException as error:  # noqa: BLE001 - the one channel: it comes out of Job.results
                for job in {parcel.job for parcel in parcels}:
                    self.cancel(job, error)
            finally:
                with self._lock:
                    for parcel in parcels:
                        self._retire(parcel, i)
                    self._ready[self._batch_at].notify_all()  # a group may be complete just now

    def _take(self, i: int) -> list[_Parcel]:
        """Wait for input; [] when the pipeline is closed."""
        with self._lock:
            while not self._closed:
                parcels = self._next(i)
                if parcels:
                    return parcels
                start, running = time.monotonic(), bool(self._jobs)
                self._ready[i].wait()
                if running:
                    self.clocks[self._stages[i].name].starved_s += time.monotonic() - start
        return []

    def _next(self, i: int) -> list[_Parcel]:
        if i == 0:
            return self._admit()
        if i != self._batch_at:
            return [self._queues[i].popleft()] if self._queues[i] else []
        while self._queues[i]:
            parcel = self._queues[i].popleft()
            self._batcher.add(self._batch_stage.bucket_of(parcel.value), parcel)
        parcels = self._batcher.pick(lambda one: not one.job.arriving[one.group])
        if not parcels:
            self._budgets[i - 1].wake()
        return parcels

    def _admit(self) -> list[_Parcel]:
        """The next value that may enter: of the oldest job always, of younger ones while there is room for results."""
        for age, job in enumerate(self._jobs):
            if age > 0 and self._budgets[-1].used_bytes >= self._budgets[-1].limit_bytes:
                break
            if job.pending and not (job.one_by_one and any(job.alive)):
                index, value = job.pending.popleft()
                job.alive[0] += 1
                return [_Parcel(job, (index,), value, job.groups[index])]
        return []

    def _step(self, i: int, parcels: list[_Parcel]) -> None:
        (parcel,), stage = parcels, self._stages[i]
        assert isinstance(stage, Stage)
        if not stage.many:
            self._make(i, parcel, parcel.path, lambda: stage.work(parcel.value))
            return
        outputs = iter(stage.work(parcel.value))
        try:
            n = 0
            while self._make(i, parcel, (*parcel.path, n), lambda: next(outputs, _END)):
                n += 1
        finally:
            if hasattr(outputs, "close"):
                outputs.close()

    def _make(self, i: int, parcel: _Parcel, path: tuple[int, ...], work: Callable[[], Any]) -> bool:
        """Make one output and hand it on; False when there is none (any more), or no job to make it for."""
        reserved = self._expected(i, parcel, is_first=path == parcel.path or path[-1] == 0)
        outputs = self._made(i, [parcel], reserved, lambda: [out for out in [work()] if out is not _END])
        for output in outputs:
            self._emit(i, parcel, path, output, reserved)
        return bool(outputs)

    def _expected(self, i: int, parcel: _Parcel, *, is_first: bool) -> int:
        if i == self._last:
            return 0  # results are counted, but nobody waits for their bytes
        expect = getattr(self._stages[i], "expect", None)
        known = expect(parcel.value) if expect and is_first else None
        return self._budgets[i].expected() if known is None else known

    def _step_batch(self, i: int, parcels: list[_Parcel]) -> None:
        each, values = self._budgets[i].expected(len(parcels)), [parcel.value for parcel in parcels]
        outputs = self._made(i, parcels, each, lambda: self._batch_stage.work(values))
        for parcel, output in zip(parcels, outputs, strict=False):
            self._emit(i, parcel, parcel.path, output, each)

    def _made(self, i: int, parcels: list[_Parcel], each: int, work: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """Reserve bytes for an output of each parcel, then make them; none is made when nobody wants them any more."""
        amount, outputs = each * len(parcels), list[Any]()
        if i != self._last and not self._reserve(i, amount, [parcel.job for parcel in parcels]):
            return []
        try:
            outputs = list(self._timed(i, parcels, work))
            if i == self._batch_at and len(outputs) != len(parcels):
                raise RuntimeError(f"{self._stages[i].name} made {len(outputs)} outputs of {len(parcels)} values")
        finally:
            if len(outputs) != len(parcels):
                self._budgets[i].release(amount)
        return outputs

    def _reserve(self, i: int, amount_bytes: int, jobs: Sequence[Job]) -> bool:
        start = time.monotonic()
        taken = self._budgets[i].acquire(amount_bytes, lambda: self._closed or all(j.error is not None for j in jobs))
        with self._lock:
            self.clocks[self._stages[i].name].blocked_s += time.monotonic() - start
        return taken

    def _timed(self, i: int, parcels: list[_Parcel], work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            return work()
        finally:
            spent = time.monotonic() - start
            with self._lock:
                self.clocks[self._stages[i].name].busy_s += spent
                for parcel in parcels:
                    parcel.job.stage_seconds[self._stages[i].name] += spent / len(parcels)

    def _emit(self, i: int, parcel: _Parcel, path: tuple[int, ...], output: Any, reserved: int) -> None:
        """Hand an output on; its reservation becomes its true size."""
        size, job = self._stages[i].size_of(output), parcel.job
        with self._lock:
            self.clocks[self._stages[i].name].outputs += 1
            self._budgets[i].settle(reserved, size)
            if job.error is not None:
                self._budgets[i].release(size)
            elif i == self._last:
                job.kept_bytes += size
                job.done.append((path, output))
            else:
                target = i + 1
                if target == self._batch_at and self._batch_stage.bucket_of(output) is None:
                    target += 1
                job.alive[target] += 1
                if target < self._batch_at:
                    job.arriving[parcel.group] += 1
                self._queues[target].append(_Parcel(job, path, output, parcel.group, self._budgets[i], size))
                self._ready[target].notify()

    # --- with the lock held

    def _retire(self, parcel: _Parcel, i: int) -> None:
        """A stage is through with a parcel: its bytes are free, and its job may be finished."""
        parcel.job.alive[i] -= 1
        if i < self._batch_at:
            parcel.job.arriving[parcel.group] -= 1
        if parcel.budget is not None:
            parcel.budget.release(parcel.size_bytes)
        if parcel.job.is_finished():
            self._finished.notify_all()
        if parcel.job.one_by_one:
            self._ready[0].notify_all()

    def _notify_all(self) -> None:
        for condition in (*self._ready, self._finished):
            condition.notify_all()
        for budget in self._budgets:
            budget.wake()
