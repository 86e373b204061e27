"""Tar and WebDataset shards as sources: every image or video member becomes an item, found by its byte range."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from infra.errors import AccessDenied, ObjectChanged, ObjectGone, StoreError
from infra.store import ObjectInfo, Store
from tasks.ingest.tar_index import TarBrokenError, tar_members
from tasks.media.endings import kind_of, reason_to_skip
from tasks.output.entries import MEMBER_SEPARATOR, Row, Skipped, batches_of, member_etag
from tasks.records import MISSING_ETAG

TAR_THREADS = 8
HEADER_READ_BYTES = 16 << 10  # a header, the name headers before it, and often the next small members


@dataclass(frozen=True, slots=True)
class TarTask:
    """A tar whose members are to be listed. ``etag`` None: look it up (a ready listing need not state it)."""

    store: Store
    key: str
    etag: str | None = None
    size_bytes: int = 0


def with_members(pieces: Iterable[pa.RecordBatch | TarTask], skipped: Skipped) -> Iterator[pa.RecordBatch]:
    """Pass batches on, and put the batches of its members in place of each tar; a few tars are indexed at a time.

    A damaged tar gives its members up to the break and one row that says what broke; a missing or forbidden one gives
    that row alone. Failures that pass (``StoreUnavailable``) end the listing: rows must not depend on the weather.
    """
    pool = ThreadPoolExecutor(TAR_THREADS, thread_name_prefix="tar-index")
    pending: deque[Future[tuple[list[pa.RecordBatch], Skipped]]] = deque()
    try:
        for piece in pieces:
            if isinstance(piece, pa.RecordBatch):
                yield piece
                continue
            pending.append(pool.submit(_index, piece))
            if len(pending) >= 2 * TAR_THREADS:
                yield from _finished(pending.popleft(), skipped)
        while pending:
            yield from _finished(pending.popleft(), skipped)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def problem_row(uri: str, problem: str, *, etag: str = MISSING_ETAG) -> Row:
    """The row of something that should be in a dataset and cannot be read; it ends as a failed row of the output."""
    return Row(uri, etag, 0, "image", problem=problem)


def _finished(done: Future[tuple[list[pa.RecordBatch], Skipped]], skipped: Skipped) -> list[pa.RecordBatch]:
    batches, left_out = done.result()
    skipped.merge(left_out)
    return batches


def _index(task: TarTask) -> tuple[list[pa.RecordBatch], Skipped]:
    """The members of one tar as compact batches, and what was left out of it."""
    skipped = Skipped()
    uri = task.store.uri_of(task.key)
    try:
        info = ObjectInfo(task.key, task.size_bytes, task.etag or "")
        if task.etag is None:
            info = task.store.info(task.key)
        return list(batches_of(_rows(task.store, info, skipped))), skipped
    except (ObjectGone, AccessDenied, ObjectChanged) as error:
        etag = MISSING_ETAG if task.etag is None else member_etag(task.etag, 0, 0)
        return list(batches_of([problem_row(uri, f"{type(error).__name__}: {error.message}", etag=etag)])), skipped


def _rows(store: Store, info: ObjectInfo, skipped: Skipped) -> Iterator[Row]:
    """The items of a tar; of members that share a name the last counts, as when it is unpacked."""
    tar_uri = store.uri_of(info.key)
    prefix = tar_uri + MEMBER_SEPARATOR
    items: dict[str, Row] = {}
    broken: TarBrokenError | None = None
    with store.open(info.key, block_bytes=HEADER_READ_BYTES) as file:
        try:
            for member in tar_members(file, info.size_bytes):
                kind = kind_of(member.name)
                if kind not in ("image", "video") or member.left_out is not None:
                    reason = member.left_out or reason_to_skip(member.name)
                    skipped.add("tar member: " + reason, [prefix + member.name], 1)
                    continue
                if items.pop(member.name, None) is not None:
                    skipped.add("tar member: a later one has the same name", [prefix + member.name], 1)
                etag = member_etag(info.etag, member.offset, member.length)
                place = (tar_uri, member.offset, member.length)
                items[member.name] = Row(prefix + member.name, etag, member.length, kind, *place)
        except TarBrokenError as error:
            broken = error
        except StoreError:
            raise
        except OSError as error:  # a local disk that fails under the reader
            raise StoreError(f"{tar_uri} cannot be read: {error.strerror or error}") from error
    yield from items.values()
    if broken is not None:
        name = broken.name if broken.name is not None else f"@{broken.offset}"
        etag = member_etag(info.etag, broken.offset, 0)
        yield Row(prefix + name, etag, 0, "image", tar_uri, broken.offset, 0, f"broken tar: {broken}")
