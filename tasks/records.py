"""The nouns of the job, one frozen record each; the README's word list says what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.redaction import redact

Media = Literal["image", "video"]
Stage = Literal["inventory", "fetch", "decode", "infer", "encode", "commit"]
Status = Literal["ok", "failed", "quarantined"]

UNKNOWN_ETAG = "unknown:"  # begins the etag of an item whose listing states none
MISSING_ETAG = "missing:"  # begins the etag of an item that is named somewhere, but was not found


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a plan: an image, or a run of frames of one video.

    ``uri`` names the item for people and queries; it is data and never parsed. Bytes are found through
    ``container`` (a tar object) + ``offset``/``length`` when set, else through ``uri`` itself.
    """

    uri: str
    etag: str
    size_bytes: int
    media: Media
    container: str | None = None  # URI of the tar object that holds this member
    offset: int | None = None  # first byte of the member inside the container
    length: int | None = None  # bytes of the member inside the container
    first_frame: int = 0  # video: index of the first frame, always a keyframe
    end_frame: int | None = None  # video: one past the last frame; None = to the end
    first_pts: int | None = None  # video: pts of first_frame in stream time base, to seek to; None = from the start
    problem: str | None = None  # why listing it failed (broken tar, missing shard): a failed row of stage inventory


def etag_to_pin(entry: Entry) -> str | None:
    """The etag to demand of the object that is read for ``entry`` (a member's tar); None when the listing knew none."""
    etag = entry.etag
    if entry.container is not None and entry.offset is not None:
        etag = etag.rsplit(":", 2)[0]
    return None if etag.startswith((UNKNOWN_ETAG, MISSING_ETAG)) else etag


@dataclass(frozen=True, slots=True)
class Shard:
    """A bounded list of entries: the unit of work, retry and commit. ``shard_id`` hashes plan number and content."""

    shard_id: str
    plan: int
    index: int  # position in the plan, for people
    entries: tuple[Entry, ...]
    work: float  # estimated cost, in bytes-equivalents; shards of a plan are about even
    continues: str | None = None  # the shard before it, when the first entry goes on with the clip that is last there


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why an item has no result: the stage that broke, the kind of error, and one clear line."""

    stage: Stage
    error_type: str
    error: str

    @classmethod
    def of(cls, stage: Stage, error: Exception) -> ItemFailure:
        """An exception as the failure of one item: one line, without secrets."""
        words = " ".join(redact(str(error)).split())[:500]
        return cls(stage, type(error).__name__, words or type(error).__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """What makes rows comparable: model digest, parameters that change rows, schema. Two versions never mix."""

    fingerprint: str  # 16 hex digits
    product: str  # name of what a job writes, see tasks.product
    model: str  # name@digest
    model_digest: str  # sha256 of the weights with what of their record changes rows, hex
    parameters: dict[str, object]  # only those that change rows (frame stride, score threshold, ...)
    schema: str  # e.g. "segments.v1"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of one attempt at one shard; small, the only thing that travels back from a worker."""

    shard_id: str
    attempt_id: str
    outcome: Literal["committed", "already_committed"]  # the latter: a twin was first, nothing written
    rows: int
    ok: int
    failed: int
    quarantined: int
    bytes_in: int
    bytes_out: int
    stage_seconds: dict[str, float] = field(default_factory=dict)
    retries: int = 0  # transient I/O retries inside the worker
    batch_size: int = 0  # largest batch that fitted
    error_sample: tuple[str, ...] = ()  # up to 5 "uri: error" lines
