"""The bytes of an entry: a whole object, or a member inside a tar, always those that were listed.

Reads are pinned to the etag of the listing where it stated one: an object that was replaced since then is a failed
item, never a mixture of two files. What the store refuses for one item becomes an :class:`ItemFailure` of stage
``fetch``.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from infra.errors import ObjectChanged, StoreError, StoreOutage, UsageError
from infra.redaction import redact
from infra.store import Store, is_local, open_store, split_uri
from tasks.media.options import MAX_FILE_BYTES
from tasks.records import Entry, ItemFailure, etag_to_pin

BLOCK_BYTES = (
    1 << 20
)  # measured for video seeks over S3: 1 MiB blocks seek as fast as smaller ones, with a third of the requests
WHOLE_BYTES = 8 << 20  # a video up to this size is fetched with one request
MAX_AHEAD_BLOCKS = 8  # a sequential reader asks for up to this many blocks at a time
CACHED_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of an entry lie: ``length`` bytes from ``offset`` of object ``key``; None means to its end."""

    root: str
    key: str
    offset: int
    length: int | None
    etag: str | None

    @classmethod
    def of(cls, entry: Entry) -> Location:
        """The place of an entry's bytes. ``uri`` names it, unless it is a member of ``container``."""
        inside = entry.container is not None and entry.offset is not None
        root, key = split_uri(entry.container if entry.container is not None else entry.uri)
        if is_local(root):
            # One store for all local files: a dataset may have as many folders as files.
            root, key = "/", f"{root}/{key}".lstrip("/")
        return cls(
            root=root,
            key=key,
            offset=(entry.offset or 0) if inside else 0,
            length=entry.length if inside else None,
            etag=etag_to_pin(entry),
        )


class EntryReader:
    """Reads entries of any mixture of stores; opens one store per root when first asked. Safe to use from many threads.

    Args:
        open_root: makes the store of a root URI.
    """

    def __init__(self, open_root: Callable[[str], Store] = open_store) -> None:
        self._open_root = open_root
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def num_retries(self) -> int:
        """Transient failures that reading has repeated so far, over all stores."""
        with self._lock:
            counts: list[dict[str, int]] = [getattr(s, "retry_counts", dict)() for s in self._stores.values()]
        return sum(sum(count.values()) for count in counts)

    def store_at(self, root: str) -> Store:
        """The store of a root, one per process and root."""
        with self._lock:
            if root not in self._stores:
                self._stores[root] = self._open_root(root)
            return self._stores[root]

    def fetch(self, entry: Entry, max_bytes: int = MAX_FILE_BYTES) -> bytes | ItemFailure:
        """All bytes of an entry, or why there are none. Never raises for what the store answers.

        Args:
            max_bytes: a larger entry is a failure and is not read. Where the listing states no size, or none that the
                store confirms, the store is asked for it first.

        Raises:
            StoreOutage: the store did not answer for as long as it is waited for.
        """
        try:
            where = Location.of(entry)
            store = self.store_at(where.root)
            size = where.length if where.length is not None else entry.size_bytes
            if where.length is None and (size <= 0 or where.etag is None):
                size = store.info(where.key).size_bytes
            if size > max_bytes:
                words = f"the file has {size} bytes; the limit is {max_bytes}"
                return ItemFailure(stage="fetch", error_type="TooManyBytes", error=words)
            if where.length is None:
                return store.get(where.key, etag=where.etag)
            return store.read_range(where.key, where.offset, where.length, etag=where.etag)
        except (StoreError, UsageError) as error:
            return fetch_failure(error)

    def open(self, entry: Entry) -> BinaryIO:
        """A seekable reader of an entry's bytes: small files at once, large ones in blocks as they are needed.

        Raises:
            StoreError: here or at any later read; ObjectChanged when the object is replaced while it is read.
        """
        where = Location.of(entry)
        store = self.store_at(where.root)
        length, etag = where.length, where.etag
        if length is None:
            length = entry.size_bytes
            if length <= 0 or etag is None:
                info = store.info(where.key)
                length, etag = info.size_bytes, info.etag
        if length <= WHOLE_BYTES:
            whole = where.length is None
            data = (
                store.get(where.key, etag=etag)
                if whole
                else store.read_range(where.key, where.offset, length, etag=where.etag)
            )
            return io.BytesIO(data)
        return io.BufferedReader(BlockReader(store, where.key, where.offset, length, etag), buffer_size=64 << 10)


class BlockReader(io.RawIOBase):
    """A window of an object as a seekable file, read in blocks that are kept; sequential reading asks further ahead.

    At most ``CACHED_BLOCKS`` + ``MAX_AHEAD_BLOCKS`` blocks are in memory. Used by one thread at a time.

    Attributes:
        trouble: the store's refusal of a read. FFmpeg may take it for the end of the file and say nothing.
    """

    def __init__(self, store: Store, key: str, offset: int, length: int, etag: str | None) -> None:
        super().__init__()
        self._store, self._key, self._etag = store, key, etag
        self._offset, self._length = offset, length
        self._position = 0
        self.trouble: StoreError | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_block = 0  # where a sequential reader would go on
        self._ahead = 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._length:
            return 0
        index, start = divmod(self._position, BLOCK_BYTES)
        part = self._block(index)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            self._fetch(index)
        self._blocks.move_to_end(index)
        return self._blocks[index]

    def _fetch(self, index: int) -> None:
        self._ahead = min(2 * self._ahead, MAX_AHEAD_BLOCKS) if index == self._next_block else 1
        start = index * BLOCK_BYTES
        length = min(self._ahead * BLOCK_BYTES, self._length - start)
        try:
            data = self._store.read_range(self._key, self._offset + start, length, etag=self._etag)
        except StoreError as error:
            self.trouble = error
            raise
        for i, at in enumerate(range(0, length, BLOCK_BYTES)):
            self._blocks[index + i] = data[at : at + BLOCK_BYTES]
            self._blocks.move_to_end(index + i)
            self._next_block = index + i + 1
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)


def raise_trouble(source: BinaryIO) -> None:
    """Raise what the store said when a read of an entry's bytes failed; nothing happens if all went well."""
    trouble = getattr(getattr(source, "raw", None), "trouble", None)
    if trouble is not None:
        raise trouble


def fetch_failure(error: StoreError | UsageError) -> ItemFailure:
    """A store's refusal as the failure of one item; without secrets. An outage is nobody's failure: it is raised."""
    if isinstance(error, StoreOutage):
        raise error
    words = error.message
    if isinstance(error, ObjectChanged):
        words += "; the next run will list it anew"
    return ItemFailure(stage="fetch", error_type=type(error).__name__, error=" ".join(redact(words).split())[:500])
