"""A store seen as a read-only fsspec filesystem, so that DuckDB and pyarrow read its Parquet without any extension.

DuckDB's wheel brings no S3 client and its threads share one file handle: they seek, then read. A plain
wrapper mixes these pairs up and returns torn pages, so every thread has its own position here, and a
read is one ranged request (retried and checked for torn answers by the store).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from infra.store import ObjectInfo, Store
from infra.store_reader import SeekableReader

PROTOCOL = "store"
_PREFIX = f"{PROTOCOL}://"
_FOOTER_BLOCK_BYTES = 1 << 16  # a footer of ours is a few kB to a few dozen kB: one request

_UNCHANGING = datetime(2000, 1, 1, tzinfo=UTC)  # committed objects never change, so caches never expire


def path_of(key: str) -> str:
    """The path under which :class:`StoreFileSystem` knows a key."""
    return _PREFIX + key


class StoreFileSystem(AbstractFileSystem):
    """A fixed list of a store's objects; what is not in the list does not exist, and nothing can be written.

    Args:
        store: where the bytes are.
        objects: the list; sizes and etags are taken from it, no request is made for them.

    ``bytes_read`` counts what went over the wire, for measurements; ``failure`` keeps the store's own
    error, because DuckDB turns it into a traceback in a string.
    """

    protocol = PROTOCOL
    cachable = False  # fsspec would hand one instance to every connection

    def __init__(self, store: Store, objects: Iterable[ObjectInfo]) -> None:
        super().__init__()
        self.store = store
        self.objects = {info.key: info for info in objects}
        self.bytes_read = 0
        self.failure: Exception | None = None
        self._lock = threading.Lock()

    def _object(self, path: str) -> ObjectInfo:
        info = self.objects.get(path.removeprefix(_PREFIX))
        if info is None:
            raise FileNotFoundError(path)
        return info

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> io.RawIOBase:
        if mode != "rb":
            raise PermissionError(f"{path}: results are read-only here")
        return StoreFile(self, self._object(path))

    def read_range(self, info: ObjectInfo, offset: int, length: int) -> bytes:
        """Bytes of one listed object, counted."""
        try:
            data = self.store.read_range(info.key, offset, length)
        except Exception as error:
            self.failure = error
            raise
        with self._lock:
            self.bytes_read += len(data)
        return data

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        found = self._object(path)
        return {"name": path_of(found.key), "size": found.size_bytes, "type": "file", "ETag": found.etag}

    def exists(self, path: str, **_options: Any) -> bool:
        return path.removeprefix(_PREFIX) in self.objects

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def isdir(self, path: str) -> bool:
        return False

    def glob(self, path: str, **_options: Any) -> list[str]:  # type: ignore[override]
        return [path] if self.exists(path) else []

    def created(self, path: str) -> datetime:
        return _UNCHANGING

    def modified(self, path: str) -> datetime:
        return _UNCHANGING


class StoreFile(SeekableReader):
    """One object, readable by many threads at once: each has its own position."""

    def __init__(self, filesystem: StoreFileSystem, info: ObjectInfo) -> None:
        super().__init__(info.size_bytes)
        self._filesystem, self._info, self._of_thread = filesystem, info, threading.local()

    @property
    def position(self) -> int:  # type: ignore[override]
        return getattr(self._of_thread, "position", 0)

    @position.setter
    def position(self, at: int) -> None:
        self._of_thread.position = at

    def read(self, size: int | None = -1) -> bytes:
        start = self.position
        left = max(0, self.length - start)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        data = self._filesystem.read_range(self._info, start, length)
        self.position = start + len(data)
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_parquet(store: Store, key: str, *, verify_checksums: bool = False) -> pq.ParquetFile:
    """One Parquet object of a store, read on demand: the footer now, columns when asked for.

    Raises:
        pyarrow.ArrowInvalid: when it is not a Parquet file; StoreError subclasses when it cannot be read.
    """
    source = pa.PythonFile(store.open(key, block_bytes=_FOOTER_BLOCK_BYTES), mode="r")
    return pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=verify_checksums)
