"""Who does what next, and what follows from what came back. Plain arithmetic: no Ray, no clock, no threads.

    next(worker) -> Assignment      completed / survived / failed / lost      finished, left_open

A shard that cost a worker its life is tried again elsewhere, alone on its worker. When it does so again, an
investigation finds the item; that item is quarantined, and the shard is carried out whole without it. So a shard always
ends as its one object, and only a run that is stopped (drained, or its circuit opened) leaves its plan open.

With a model that has a memory (``ordered``) a shard that goes on with a clip waits until the shard before it is
committed; others are handed out in the meantime. Then it goes first: a clip's shards can only be done one by one, so
the longest clip decides when the run ends.
"""

from __future__ import annotations

import heapq
import itertools
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infra.errors import (
    AccessDenied,
    BucketMissing,
    CircuitOpen,
    ContractBroken,
    NoSpaceLeft,
    StoreOutage,
    UsageError,
    VersionMismatch,
    VisionmillError,
)
from infra.retry import RetryPolicy
from tasks.engine.circuit import circuit_open
from tasks.engine.heartbeat import Mark
from tasks.engine.investigation import Culprit, Investigation
from tasks.engine.job import Assignment, Quarantine
from tasks.engine.ledger import Attempt, AttemptEnd
from tasks.records import ItemFailure, Receipt, Shard, Stage

_FATAL = (
    CircuitOpen, AccessDenied, BucketMissing, NoSpaceLeft, StoreOutage, UsageError, VersionMismatch, ContractBroken,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """The numbers behind the decisions.

    Attributes:
        deaths_before_investigation: so many lost workers make a shard suspicious.
        max_attempts: of one shard, probes not counted; then the run stops, because nothing helps.
        max_failures_in_a_row: attempts that failed or lost their worker, without anything that came back in between:
            the machine, the store or the model is broken. At least three per worker are allowed.
        look_ahead: shards held in memory, of which the largest goes first.
        backoff: before a failed shard is tried again.
    """

    deaths_before_investigation: int = 2
    max_attempts: int = 8
    max_failures_in_a_row: int = 16
    look_ahead: int = 64
    shards_in_flight: int = 2
    backoff: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_delay_s=0.5, max_delay_s=30.0))


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker was lost.

    Args:
        cause: in words, e.g. "died of SIGABRT", "hung in decode for 320 s".
        hung: killed by us, because it made no progress.
        suspects: what it was busy with; the likeliest first.
        stage: of the likeliest.
        exact: the first suspect is where the signal was caught.
    """

    cause: str
    hung: bool = False
    suspects: tuple[Mark, ...] = ()
    stage: str = ""
    exact: bool = False


@dataclass(slots=True)
class _Case:
    """A shard that is not done yet."""

    shard: Shard
    attempts: int = 0
    losses: int = 0
    suspects: list[Mark] = field(default_factory=list)
    last_loss: Loss | None = None
    quarantined: list[Quarantine] = field(default_factory=list)
    investigation: Investigation | None = None
    one_by_one: bool = False
    blamed: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def alone(self) -> bool:
        """Whether it gets a worker of its own, so that a death has one cause."""
        return self.losses > 0


@dataclass(slots=True)
class _Running:
    assignment: Assignment
    attempt: Attempt
    case: _Case


class Dispatcher:
    """Hands out shards, keeps the ledger. Times are seconds of any one clock.

    Args:
        shards: those of the plan that are not committed, in plan order; read ``policy.look_ahead`` ahead.
        ordered: shards that continue a clip wait for the one before.
    """

    def __init__(
        self,
        shards: Iterator[Shard],
        policy: DispatchPolicy | None = None,
        *,
        ordered: bool = False,
    ) -> None:
        self.policy = policy or DispatchPolicy()
        self.attempts: list[Attempt] = []
        self.quarantined: list[tuple[str, ItemFailure]] = []
        self.error: VisionmillError | None = None
        self._source = shards
        self._exhausted = False
        self._stopped = False
        self._ordered = ordered
        self._open: set[str] = set()  # read and not committed yet, if order matters
        self._waiting: dict[str, _Case] = {}  # by the shard that must be committed before
        self._fresh: list[tuple[float, int, _Case]] = []  # largest first
        self._again: list[tuple[float, int, _Case]] = []  # by the time they are due
        self._running: dict[str, list[_Running]] = {}
        self._reserved: set[str] = set()  # workers that are emptied for a shard that must run alone
        self._tie = itertools.count()
        self._failures_in_a_row = 0
        self._failure_sample: list[str] = []

    # --- state

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing is left to hand out (or nothing may be handed out any more)."""
        return not any(self._running.values()) and (self._stopped or not self.has_work)

    @property
    def has_work(self) -> bool:
        """Whether a shard is left that nobody works on."""
        self._look_ahead()
        return bool(self._fresh or self._again)

    @property
    def could_run(self) -> float:
        """How many workers could have something to do: infinite while the plan has shards that were not read yet."""
        self._look_ahead()
        if not self._exhausted:
            return math.inf
        return len(self._fresh) + len(self._again) + sum(map(len, self._running.values()))

    @property
    def stopped(self) -> bool:
        """Whether handing out has ended early."""
        return self._stopped

    def running(self, worker: str) -> list[Assignment]:
        """What a worker has, the oldest first."""
        return [r.assignment for r in self._running.get(worker, [])]

    def stop(self, error: VisionmillError | None = None) -> None:
        """Hand out nothing more; what runs may finish. The plan stays open."""
        self._stopped = True
        self.error = self.error or error

    def waiting_s(self, now_s: float) -> float | None:
        """Seconds until a shard that backs off is due; None when none does."""
        return max(0.0, self._again[0][0] - now_s) if self._again else None

    # --- handing out

    def next(self, worker: str, now_s: float) -> Assignment | None:
        """What ``worker`` does next; None when there is nothing for it now."""
        busy = self._running.setdefault(worker, [])
        if self._stopped or len(busy) >= self.policy.shards_in_flight or any(r.case.alone for r in busy):
            return None
        due = sum(1 for when, _, _ in self._again if when <= now_s)
        if due and (worker in self._reserved or len(self._reserved) < due):
            if busy and self._again[0][2].alone:
                self._reserved.add(worker)  # it gets the shard as soon as it is empty
                return None
            self._reserved.discard(worker)
            return self._hand_out(worker, heapq.heappop(self._again)[2], now_s)
        self._reserved.discard(worker)
        self._look_ahead()
        if busy and self._exhausted and 1 < len(self._running) > len(self._fresh):
            return None  # the tail: what is left is for those who run out first
        return self._hand_out(worker, heapq.heappop(self._fresh)[2], now_s) if self._fresh else None

    def _look_ahead(self) -> None:
        while not self._exhausted and len(self._fresh) < self.policy.look_ahead:
            shard = next(self._source, None)
            if shard is None:
                self._exhausted = True
            elif self._ordered and shard.continues in self._open:
                self._open.add(shard.shard_id)
                self._waiting[shard.continues] = _Case(shard)
            else:
                self._open.add(shard.shard_id)
                heapq.heappush(self._fresh, (-shard.work, next(self._tie), _Case(shard)))

    def _hand_out(self, worker: str, case: _Case, now_s: float) -> Assignment:
        probe = case.investigation.next() if case.investigation is not None else None
        shard = case.shard
        case.attempts += probe is None
        assignment = Assignment(
            shard=shard,
            attempt_id=uuid.uuid4().hex,
            attempt=case.attempts,
            kind="process" if probe is None else "probe",
            only=None if probe is None else probe.entries,
            end_frame=None if probe is None else probe.end_frame,
            quarantined=tuple(case.quarantined),
            one_by_one=case.one_by_one,
        )
        attempt = Attempt(shard.shard_id, case.attempts, assignment.attempt_id, worker, assignment.kind, now_s)
        self.attempts.append(attempt)
        self._running[worker].append(_Running(assignment, attempt, case))
        return assignment

    # --- reports

    def completed(self, worker: str, attempt_id: str, receipt: Receipt, now_s: float) -> Shard:
        """A shard is committed (by this attempt or by a twin); which one, and the one that waited for it is free."""
        running = self._take(worker, attempt_id, receipt.outcome, "", now_s)
        shard = running.case.shard
        self._open.discard(shard.shard_id)
        freed = self._waiting.pop(shard.shard_id, None)
        if freed is not None:
            heapq.heappush(self._fresh, (-math.inf, next(self._tie), freed))
        self._failures_in_a_row = 0
        for verdict in running.case.quarantined:
            self.quarantined.append((shard.entries[verdict.entry].uri, verdict.failure))
        return shard

    def survived(self, worker: str, attempt_id: str, now_s: float) -> None:
        """A probe came back: what it tried is innocent."""
        running = self._take(worker, attempt_id, "survived", "", now_s)
        self._failures_in_a_row = 0
        if running.case.investigation is not None:
            running.case.investigation.survived()
            self._conclude(running.case)
        self._put_back(running.case, now_s, 0.0)

    def failed(self, worker: str, attempt_id: str, error: Exception, now_s: float) -> None:
        """The call raised; its worker lives. Some errors concern the whole job and stop the run."""
        words = f"{type(error).__name__}: {error}"
        running = self._take(worker, attempt_id, "error", words, now_s)
        case = running.case
        if isinstance(error, _FATAL):
            self.stop(error)
        elif case.attempts >= self.policy.max_attempts:
            self.stop(self._hopeless(case, words))
        self._count_failure(running, words)
        self._put_back(case, now_s, self.policy.backoff.delay_s(max(1, case.attempts)))

    def lost(self, worker: str, loss: Loss, now_s: float) -> None:
        """A worker is gone, or was killed because it hung: all it had goes back, and whoever is suspect is noted."""
        self._reserved.discard(worker)
        running = self._running.pop(worker, [])
        suspected = {mark.shard_id for mark in (loss.suspects[:1] if loss.exact else loss.suspects)}
        if loss.hung and running and not suspected:
            suspected = {running[0].assignment.shard.shard_id}
        for one in running:
            guilty = len(running) == 1 or not suspected or one.assignment.shard.shard_id in suspected
            end: AttemptEnd = ("hung" if loss.hung else "died") if guilty else "bystander"
            self._close(one.attempt, end, loss.cause, now_s)
            if guilty:
                self._blame(one, loss, now_s)
            else:
                one.case.attempts -= 1
                self._put_back(one.case, now_s, 0.0)
        if running:
            self._count_failure(running[0], f"worker {loss.cause}")

    def _blame(self, running: _Running, loss: Loss, now_s: float) -> None:
        case = running.case
        case.last_loss = loss
        marks = [m for m in loss.suspects if m.shard_id == case.shard.shard_id and m.entry >= 0]
        if running.assignment.kind == "probe" and case.investigation is not None:
            case.investigation.died(silently=not (loss.exact or loss.hung))
            self._conclude(case)
            self._put_back(case, now_s, 0.0)
            return
        case.losses += 1
        case.suspects = (marks[:1] if loss.exact else marks) + case.suspects
        if case.one_by_one and marks:
            case.blamed[(marks[0].entry, marks[0].frame)] += 1
        if case.attempts >= self.policy.max_attempts:
            self.stop(self._hopeless(case, loss.cause))
        elif case.losses >= self.policy.deaths_before_investigation:
            self._investigate(case)
        self._put_back(case, now_s, 0.0 if case.investigation else self.policy.backoff.delay_s(case.losses))

    def _investigate(self, case: _Case) -> None:
        blamed = case.blamed.most_common(1)
        if blamed and blamed[0][1] >= 2:
            entry, frame = blamed[0][0]
            frame = max(frame, case.shard.entries[entry].first_frame)
            self._sentence(case, Culprit(entry, frame, rest=False), "twice, though not when tried alone")
            return
        case.investigation = Investigation(case.shard, case.suspects, case.quarantined)
        self._conclude(case)

    def _conclude(self, case: _Case) -> None:
        """Act on an investigation that is at its end."""
        investigation = case.investigation
        if investigation is None or investigation.next() is not None:
            return
        case.investigation = None
        case.suspects = []
        if investigation.culprit is not None:
            self._sentence(case, investigation.culprit, "each time, also when tried alone")
        else:
            case.one_by_one = True  # no single item does it alone: go slowly and watch

    def _sentence(self, case: _Case, culprit: Culprit, when: str) -> None:
        loss = case.last_loss or Loss("died")
        words = f"its worker {loss.cause}, {when}" + ("; later frames are out of reach" if culprit.rest else "")
        failure = ItemFailure(_stage(loss.stage), "WorkerHang" if loss.hung else "WorkerCrash", words)
        case.quarantined = [q for q in case.quarantined if (q.entry, q.frame) != (culprit.entry, culprit.frame)] + [
            Quarantine(culprit.entry, culprit.frame, failure, culprit.rest)
        ]
        case.suspects = []
        case.blamed.clear()
        case.attempts = 0

    def _count_failure(self, running: _Running, words: str) -> None:
        self._failures_in_a_row += 1
        where = f"shard {running.assignment.shard.index} ({running.assignment.kind}): {words}"
        self._failure_sample = [*self._failure_sample[-4:], where]
        if self._failures_in_a_row >= max(self.policy.max_failures_in_a_row, 3 * len(self._running)):
            self.stop(circuit_open(self._failures_in_a_row, "attempts", self._failure_sample))

    def _hopeless(self, case: _Case, words: str) -> VisionmillError:
        return circuit_open(case.attempts, f"attempts at shard {case.shard.index} ({case.shard.shard_id})", [words])

    def _take(self, worker: str, attempt_id: str, end: AttemptEnd, detail: str, now_s: float) -> _Running:
        running = self._running[worker]
        (found,) = [r for r in running if r.attempt.attempt_id == attempt_id]
        running.remove(found)
        self._close(found.attempt, end, detail, now_s)
        return found

    def _close(self, attempt: Attempt, end: AttemptEnd, detail: str, now_s: float) -> None:
        attempt.ended_s, attempt.end, attempt.detail = now_s, end, detail

    def _put_back(self, case: _Case, now_s: float, delay_s: float) -> None:
        heapq.heappush(self._again, (now_s + delay_s, next(self._tie), case))


def _stage(name: str) -> Stage:
    stages: Sequence[Stage] = ("fetch", "decode", "infer", "encode", "commit")
    return next((stage for stage in stages if stage == name), "infer")
