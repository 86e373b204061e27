"""What travels between dispatcher and worker: the job once, then assignments out and outcomes back. All small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.errors import UsageError
from infra.redaction import redact
from tasks.media.decoding import DecodeOptions
from tasks.records import Entry, ItemFailure, Receipt, Shard, Version

DEFAULT_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class PredictorSpec:
    """Another predictor for workers than the one of ``modelkit.load``; all of it but places is part of the version.

    Args:
        factory: see ``JobSpec.predictor_factory``.
        options: plain JSON for the factory, which finds it in ``JobSpec.predictor_options``.
        schema: id of the product's schema that its results fill; None: the one of plain jobs.
        known_as: what versions call it, where the factory has moved since there are outputs of it.
        places: further options that say where things are found which ``options`` know by digest or version: they may
            lie elsewhere the next time, and make the same rows.
        carries_state: it has a memory of a clip's frames, whatever its model has.
    """

    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: str | None = None
    known_as: str | None = None
    places: Mapping[str, Any] = field(default_factory=dict)
    carries_state: bool = False

    @property
    def name(self) -> str:
        """As versions have it."""
        return self.known_as or self.factory

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that names this predictor, in places and digests; it stays what it was for outputs of before."""
        return {"factory": self.name, "options": dict(self.options), "measures": self.schema is not None}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a worker must know, the same for all of a run. Picklable; holds no secret and refuses to.

    Args:
        model: name, path or URI for ``modelkit.load``.
        version: what rows are made with; a worker refuses weights with another digest.
        output_uri: where parts are committed.
        device: "cpu" or "cuda".
        batch_size: largest batch; on a CPU 1 makes rows independent of timing and costs nothing.
        batch_item_bytes: prepared items above this size share no batch; None: as large as a worker's memory allows.
        memory_bytes: bytes in flight inside one worker: fetched, decoded, raw results and rows together.
        memory_is_limit: an image that takes more is a failed row; else it goes alone.
        shards_in_flight: 2 lets the next shard fill the pipeline while this one drains and commits.
        model_options: handed to ``modelkit.load`` as keywords (min_score, weights, ...).
        execution: how to run the model (``modelkit.compile.decision.Decision`` as JSON); None is the plain way.
        predictor_factory: "module:function", called with this job instead of ``modelkit.load``; returns a predictor.
            The extension point for models that are not modelkit's.
        predictor_options: what it is told beside the job; see :class:`PredictorSpec`.
        item_s: processor time that one item may take in one stage before its worker is ended; None: judged by the
            others (:class:`tasks.engine.hangs.HangLimits`).
        outage_s: how long a store that does not answer is waited for, before the run stops.
        max_consecutive_failures: so many failed items in a row open the circuit (ten times as many where the data
            itself is bad: undecodable, or gone since it was listed).
        max_shards_per_worker, max_rss_bytes: a worker that reaches one is replaced by a fresh one.
        carries_state: the model has a memory: a clip's frames go through it in order, and a shard that goes on with a
            clip waits for the one before it.
        driver_commits: the store ignores conditional creates, so the one driver writes the parts.
    """

    model: str
    version: Version
    output_uri: str
    run_id: str
    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 1
    batch_item_bytes: int | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    memory_is_limit: bool = False
    fetch_threads: int = 8
    decode_threads: int = 2
    encode_threads: int = 1
    shards_in_flight: int = 2
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    model_options: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] | None = None
    predictor_factory: str | None = None
    predictor_options: dict[str, Any] = field(default_factory=dict)
    item_s: float | None = None
    outage_s: float = 600.0
    max_consecutive_failures: int = 200
    max_shards_per_worker: int | None = None
    max_rss_bytes: int | None = None
    carries_state: bool = False
    driver_commits: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "memory_bytes", "fetch_threads", "decode_threads", "encode_threads",
                     "shards_in_flight", "max_consecutive_failures"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")
        text = repr(self)
        if redact(text) != text:
            raise UsageError(
                "the job's parameters hold a credential",
                hint="Leave credentials to the environment (AWS_ACCESS_KEY_ID, ...) or the machine's role.",
            )


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An item that killed or hung its worker and is not touched again.

    Args:
        entry: index in the shard's entries.
        frame: index of the frame; the entry's first for an image.
        rest: the frames after it can't be reached without it (it is the decoder that dies): they are left out, too.
    """

    entry: int
    frame: int
    failure: ItemFailure
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """One call to a worker: carry a shard out, or (probe) only try some of its items without committing anything.

    Args:
        only: probe: the entries to try; None is all of them.
        end_frame: probe of a single video entry: try the frames before this one.
        quarantined: items to leave alone.
        one_by_one: never two items at once, so that the heartbeat names the guilty one.
    """

    shard: Shard
    attempt_id: str
    attempt: int = 1
    kind: Literal["process", "probe"] = "process"
    only: tuple[int, ...] | None = None
    end_frame: int | None = None
    quarantined: tuple[Quarantine, ...] = ()
    one_by_one: bool = False

    def entries(self) -> list[tuple[int, Entry]]:
        """What is to be tried, with its index in the shard."""
        indices = range(len(self.shard.entries)) if self.only is None else self.only
        return [(index, self.shard.entries[index]) for index in indices]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that is ready: where it is, what its start took, and why it computes in another way than it should."""

    pid: int
    node_id: str
    heartbeat_folder: str
    start_s: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes back from a call that did not fail.

    Args:
        receipt: None for a probe, and when the driver commits (then ``part`` holds the bytes).
        recycle: why the worker wants to be replaced; None if it does not.
        infer_busy_s, infer_idle_s: of the one thread that holds the model, since the worker started. Idle counts only
            while the worker had a shard.
        peak_bytes: most bytes in flight since the worker started.
        failures: failed and quarantined items by kind of error.
        tried: images, and frames that could be looked at, of a probe.
    """

    receipt: Receipt | None
    elapsed_s: float
    rss_bytes: int
    recycle: str | None = None
    infer_busy_s: float = 0.0
    infer_idle_s: float = 0.0
    peak_bytes: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    part: bytes | None = None
    tried: int = 0
