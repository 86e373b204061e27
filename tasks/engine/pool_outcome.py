"""What came of a run of the pool, for the run record."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.errors import VisionmillError
from tasks.engine.job import Outcome
from tasks.engine.ledger import Attempt
from tasks.records import ItemFailure, Receipt


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that died or hung."""

    worker: str
    cause: str
    hung: bool
    shards: tuple[str, ...]


@dataclass(slots=True)
class PoolOutcome:
    """Totals of one run over a plan. ``finished``: every shard of the plan is committed; else the plan is open.

    Attributes:
        rows, ok, failed, quarantined: of this run's own commits.
        already_committed: shards that a twin had committed in the meantime.
        stage_seconds: thread-seconds by stage over all workers.
        worker_start_s: seconds from asking for a worker to its being ready, of each.
        idle_share: of the workers' time with a shard in hand, in which the model did nothing.
        peak_rss_bytes: largest resident memory seen of one worker; ``peak_in_flight_bytes``: of its counted bytes.
        notes: why rows of this run may differ in the last digits from those before.
        items_per_s: since the first worker was ready.
        drained: stopped on request. ``error``: why it stopped early otherwise.
        attempts: the ledger.
    """

    finished: bool = False
    drained: bool = False
    error: VisionmillError | None = None
    shards_total: int = 0
    shards_before: int = 0
    shards_committed: int = 0
    already_committed: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    error_sample: list[str] = field(default_factory=list)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    quarantined_items: list[tuple[str, ItemFailure]] = field(default_factory=list)
    lost_workers: list[Lost] = field(default_factory=list)
    recycled_workers: int = 0
    notes: list[str] = field(default_factory=list)
    worker_start_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0
    peak_in_flight_bytes: int = 0
    batch_size: int = 0
    retries: int = 0
    infer_busy_s: float = 0.0
    infer_idle_s: float = 0.0
    seconds: float = 0.0
    items_per_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def idle_share(self) -> float:
        """Of the model's thread, between 0 and 1."""
        total = self.infer_busy_s + self.infer_idle_s
        return self.infer_idle_s / total if total else 0.0

    @property
    def worker_start_median_s(self) -> float:
        """Median start-up time; 0 without workers."""
        return statistics.median(self.worker_start_s) if self.worker_start_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """For the run record: what the record's own fields don't hold already."""
        return {
            "seconds": round(self.seconds, 3),
            "workers_started": len(self.worker_start_s),
            "worker_start_median_s": round(self.worker_start_median_s, 3),
            "workers_lost": [
                {"cause": lost.cause, "hung": lost.hung, "shards": lost.shards} for lost in self.lost_workers
            ],
            "workers_recycled": self.recycled_workers,
            "attempts": len(self.attempts),
            "quarantined": [{"uri": uri, "why": why.error} for uri, why in self.quarantined_items],
            "rows": self.rows,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "batch_size": self.batch_size,
            "retries": self.retries,
            "idle_share": round(self.idle_share, 4),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_in_flight_bytes": self.peak_in_flight_bytes,
            "notes": self.notes,
        }

    def add(self, receipt: Receipt, outcome: Outcome) -> None:
        """Count a committed shard. What a twin committed has no rows of ours."""
        self.note_usage(outcome)
        self.stage_seconds.update(receipt.stage_seconds)
        self.batch_size = max(self.batch_size, receipt.batch_size)
        self.retries += receipt.retries
        if receipt.outcome == "already_committed":
            self.already_committed += 1
            return
        self.shards_committed += 1
        self.rows += receipt.rows
        self.ok += receipt.ok
        self.failed += receipt.failed
        self.quarantined += receipt.quarantined
        self.bytes_in += receipt.bytes_in
        self.bytes_out += receipt.bytes_out
        self.failures.update(outcome.failures)
        self.error_sample = (self.error_sample + list(receipt.error_sample))[:20]

    def note_usage(self, outcome: Outcome) -> None:
        """Memory of the worker that answered."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, outcome.rss_bytes)
        self.peak_in_flight_bytes = max(self.peak_in_flight_bytes, outcome.peak_bytes)
