"""Where the bytes of an entry lie, a window of an object as a seekable file, and a store's refusal as a failure."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO

from infra.errors import ObjectChanged, StoreError, StoreOutage, UsageError
from infra.redaction import redact
from infra.store import Store, is_local, split_uri
from infra.store_reader import SeekableReader
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


def open_window(store: Store, where: Location, length: int, etag: str | None) -> BinaryIO:
    """A seekable reader of the ``length`` bytes at a place: few of them at once, many in blocks as they are needed.

    Args:
        etag: of the object that is meant; None takes what is there.
    """
    if length > WHOLE_BYTES:
        return io.BufferedReader(BlockReader(store, where.key, where.offset, length, etag), buffer_size=64 << 10)
    if where.length is None:
        return io.BytesIO(store.get(where.key, etag=etag))
    return io.BytesIO(store.read_range(where.key, where.offset, length, etag=etag))


class BlockReader(SeekableReader):
    """A window of an object as a seekable file, read in blocks that are kept; sequential reading asks further ahead.

    At most ``CACHED_BLOCKS`` + ``MAX_AHEAD_BLOCKS`` blocks are in memory. Used by one thread at a time.

    Attributes:
        trouble: the store's refusal of a read. FFmpeg may take it for the end of the file and say nothing.
    """

    def __init__(self, store: Store, key: str, offset: int, length: int, etag: str | None) -> None:
        super().__init__(length)
        self._store, self._key, self._offset, self._etag = store, key, offset, etag
        self.trouble: StoreError | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_block = 0  # where a sequential reader would go on
        self._ahead = 1

    def read_at(self, position: int, length: int) -> bytes:
        index, start = divmod(position, BLOCK_BYTES)
        return self._block(index)[start : start + length]

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            self._fetch(index)
        self._blocks.move_to_end(index)
        return self._blocks[index]

    def _fetch(self, index: int) -> None:
        self._ahead = min(2 * self._ahead, MAX_AHEAD_BLOCKS) if index == self._next_block else 1
        start = index * BLOCK_BYTES
        length = min(self._ahead * BLOCK_BYTES, self.length - start)
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
