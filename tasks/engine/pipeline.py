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
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.engine.batching import Batcher, Group
from tasks.engine.byte_budget import ByteBudget, SizeEstimate

_END = object()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, run by ``threads`` threads: ``work(value)`` returns one output, or yields any number if ``many``.

    Args:
        size_of: bytes that an output holds until the next stage is through with it.
        expect: bytes of the next output, before it is made; None: learned from the outputs so far.
        budget_bytes: limit of what lies between this stage and the next (the last stage: of results kept).
    """

    name: str
    work: Callable[[Any], Any]
    size_of: Callable[[Any], int]
    budget_bytes: int
    threads: int = 1
    many: bool = False
    expect: Callable[[Any], int] | None = None


@dataclass(frozen=True, slots=True)
class BatchStage:
    """A stage that one single thread runs on batches: ``work(values)`` returns one output per value, in order.

    Args:
        bucket_of: what may share a batch; None passes the value by, straight to the next stage.
        limit_of: largest batch of a bucket.
        group_of: position of a submitted value and the value -> among which values its outputs may find company, see
            :mod:`tasks.engine.batching`.
    """

    name: str
    work: Callable[[list[Any]], Sequence[Any]]
    size_of: Callable[[Any], int]
    budget_bytes: int
    bucket_of: Callable[[Any], Hashable | None]
    limit_of: Callable[[Hashable], int]
    group_of: Callable[[int, Any], Group]
    threads: int = field(default=1, init=False)


@dataclass(slots=True)
class StageClock:
    """Where the time of one stage's threads went, in thread-seconds."""

    busy_s: float = 0.0  # in its work
    starved_s: float = 0.0  # no input, while some job was running
    blocked_s: float = 0.0  # output had no room: a later stage is slower
    outputs: int = 0


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


class Job:
    """The values of one submit on their way; made by :meth:`Pipeline.submit`, used as a context manager."""

    def __init__(self, pipeline: Pipeline, number: int, values: Iterable[Any], one_by_one: bool) -> None:
        self.number = number
        self.pending = deque(enumerate(values))
        self.one_by_one = one_by_one
        self.alive = [0] * pipeline.num_stages  # parcels at or waiting for each stage
        self.groups = [pipeline.group_of(at, value, one_by_one) for at, value in self.pending]
        self.arriving = Counter(self.groups)  # values and parcels of a group that are not at the batch stage yet
        self.done: list[tuple[tuple[int, ...], Any]] = []
        self.kept_bytes = 0
        self.stage_seconds: dict[str, float] = dict.fromkeys(pipeline.stage_names, 0.0)
        self.error: BaseException | None = None
        self._pipeline = pipeline

    def __enter__(self) -> Job:
        return self

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

    def is_cancelled(self) -> bool:
        """Whether the job's parcels are to be dropped."""
        return self.error is not None

    def is_finished(self) -> bool:
        """Whether nothing of the job is on the way any more."""
        return not self.pending and not any(self.alive)


class Pipeline:
    """The stages with their threads; lives as long as its worker and serves several jobs at once, oldest first.

    At most one stage may be a :class:`BatchStage`, and neither the first nor the last.
    """

    def __init__(self, stages: Sequence[Stage | BatchStage]) -> None:
        batching = [i for i, stage in enumerate(stages) if isinstance(stage, BatchStage)]
        if len(stages) < 2 or len(batching) > 1 or (batching and batching[0] in (0, len(stages) - 1)):
            raise ValueError("a pipeline has two or more stages, and one batch stage at most, in between")
        self._stages = list(stages)
        self._batch_at = batching[0] if batching else None
        self._lock = threading.RLock()
        self._ready = [threading.Condition(self._lock) for _ in stages]
        self._finished = threading.Condition(self._lock)
        self._queues: list[deque[_Parcel]] = [deque() for _ in stages]
        self._in_company_bytes = 0  # of parcels that wait for others to share a batch
        self._budgets = [
            ByteBudget(stage.budget_bytes, self._lock, idle=self._idle_bytes if i + 1 == self._batch_at else None)
            for i, stage in enumerate(stages)
        ]
        self._estimates = [SizeEstimate(stage.budget_bytes) for stage in stages]
        self._batcher: Batcher[_Parcel] | None = None
        if self._batch_at is not None:
            batch: Any = stages[self._batch_at]
            self._batcher = Batcher(batch.limit_of)
        self._jobs: list[Job] = []
        self._counter = 0
        self._closed = False
        self.clocks = {stage.name: StageClock() for stage in stages}
        self.peak_bytes = 0
        self._threads = [
            threading.Thread(target=self._loop, args=(i,), name=f"{stage.name}-{n}", daemon=True)
            for i, stage in enumerate(stages)
            for n in range(stage.threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- what callers use

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self._stages)

    @property
    def stage_names(self) -> list[str]:
        """Their names, in order."""
        return [stage.name for stage in self._stages]

    @property
    def bytes_in_flight(self) -> int:
        """Bytes on all edges now, results that are kept included."""
        with self._lock:
            return sum(budget.used_bytes for budget in self._budgets)

    def submit(self, values: Iterable[Any], *, one_by_one: bool = False) -> Job:
        """Queue the values of a job behind those of older jobs.

        With ``one_by_one`` the next value enters when the one before has left: slow, but after a crash it is plain
        which one was being worked on.
        """
        with self._lock:
            if self._closed:
                raise JobCancelledError("the pipeline is closed")
            self._counter += 1
            job = Job(self, self._counter, values, one_by_one)
            self._jobs.append(job)
            self._notify_all()
            return job

    def group_of(self, position: int, value: Any, one_by_one: bool) -> Group:
        """Among which values of its job the outputs of a value may find company in a batch."""
        if self._batch_at is None or one_by_one:
            return position, position + 1
        stage = self._stages[self._batch_at]
        assert isinstance(stage, BatchStage)
        return stage.group_of(position, value)

    def wait(self, job: Job) -> None:
        """Return when the job is finished; when it was cancelled, as soon as nobody works on it any more."""
        with self._finished:
            self._finished.wait_for(lambda: job.is_finished() or self._closed)

    def keep(self, job: Job, amount_bytes: int) -> None:
        """See :meth:`Job.keep`."""
        with self._lock:
            job.kept_bytes += amount_bytes
            self._budgets[-1].correct(0, amount_bytes)
            self._note_peak()

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
            if self._batcher is not None and self._batch_at is not None:
                for parcel in self._batcher.drop(lambda p: p.job is job):
                    self._in_company_bytes -= parcel.size_bytes
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
                    if self._batcher is not None and self._batch_at is not None:
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
        if i != self._batch_at or self._batcher is None:
            return [self._queues[i].popleft()] if self._queues[i] else []
        stage = self._stages[i]
        while self._queues[i]:
            parcel = self._queues[i].popleft()
            self._batcher.add(stage.bucket_of(parcel.value), parcel)  # type: ignore[union-attr]
            self._in_company_bytes += parcel.size_bytes
        parcels = self._batcher.pick(lambda one: not one.job.arriving[one.group])
        self._in_company_bytes -= sum(parcel.size_bytes for parcel in parcels)
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
        """Reserve, make one output, hand it on; False when there is none (any more), or no job to make it for."""
        stage, job, reserved = self._stages[i], parcel.job, 0
        if i < len(self._stages) - 1:
            expect = getattr(stage, "expect", None)
            reserved = expect(parcel.value) if expect else self._estimates[i]()
            if not self._reserve(i, reserved, [job]):
                return False
        output = _END
        try:
            output = self._timed(i, [parcel], work)
        finally:
            if output is _END:
                self._budgets[i].release(reserved)
        if output is not _END:
            self._emit(i, parcel, path, output, reserved)
        return output is not _END

    def _step_batch(self, i: int, parcels: list[_Parcel]) -> None:
        stage, each = self._stages[i], self._estimates[i](len(parcels))
        if not self._reserve(i, each * len(parcels), [parcel.job for parcel in parcels]):
            return
        outputs: Sequence[Any] = []
        try:
            outputs = self._timed(i, parcels, lambda: stage.work([parcel.value for parcel in parcels]))
            if len(outputs) != len(parcels):
                raise RuntimeError(f"{stage.name} made {len(outputs)} outputs of {len(parcels)} values")
        finally:
            if len(outputs) != len(parcels):
                self._budgets[i].release(each * len(parcels))
        for parcel, output in zip(parcels, outputs, strict=True):
            self._emit(i, parcel, parcel.path, output, each)

    def _reserve(self, i: int, amount_bytes: int, jobs: Sequence[Job]) -> bool:
        start = time.monotonic()
        taken = self._budgets[i].acquire(amount_bytes, lambda: self._closed or all(j.is_cancelled() for j in jobs))
        with self._lock:
            self.clocks[self._stages[i].name].blocked_s += time.monotonic() - start
            self._note_peak()
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
        size, job, last = self._stages[i].size_of(output), parcel.job, len(self._stages) - 1
        with self._lock:
            self.clocks[self._stages[i].name].outputs += 1
            self._estimates[i].learn(size)
            self._budgets[i].correct(reserved, size)
            self._note_peak()
            if job.is_cancelled():
                self._budgets[i].release(size)
            elif i == last:
                job.kept_bytes += size
                job.done.append((path, output))
            else:
                target = i + 1
                if target == self._batch_at and self._stages[target].bucket_of(output) is None:  # type: ignore[union-attr]
                    target += 1
                job.alive[target] += 1
                if self._is_before_batch(target):
                    job.arriving[parcel.group] += 1
                self._queues[target].append(_Parcel(job, path, output, parcel.group, self._budgets[i], size))
                self._ready[target].notify()

    # --- with the lock held

    def _retire(self, parcel: _Parcel, i: int) -> None:
        """A stage is through with a parcel: its bytes are free, and its job may be finished."""
        parcel.job.alive[i] -= 1
        if self._is_before_batch(i):
            parcel.job.arriving[parcel.group] -= 1
        if parcel.budget is not None:
            parcel.budget.release(parcel.size_bytes)
        if parcel.job.is_finished():
            self._finished.notify_all()
        if parcel.job.one_by_one:
            self._ready[0].notify_all()

    def _is_before_batch(self, i: int) -> bool:
        return self._batch_at is not None and i < self._batch_at

    def _idle_bytes(self) -> int:
        return self._in_company_bytes

    def _note_peak(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(budget.used_bytes for budget in self._budgets))

    def _notify_all(self) -> None:
        for condition in (*self._ready, self._finished):
            condition.notify_all()
        for budget in self._budgets:
            budget.wake()
