"""Seekable files of which each read says where: a version of an object in ranges, and whatever else is made so."""

from __future__ import annotations

import io

from infra.store_types import Store


class SeekableReader(io.RawIOBase):
    """A file of ``length`` bytes; a subclass says what lies at a place (:meth:`read_at`)."""

    position = 0

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def read_at(self, position: int, length: int) -> bytes:
        """At least one of the ``length`` bytes from ``position``; both lie inside the file."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self.length - self.position)
        if length <= 0:
            return 0
        data = self.read_at(self.position, length)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class RangeReader(SeekableReader):
    """Raw reads become ranged GETs pinned to the etag seen at opening; wrap it in ``io.BufferedReader`` for blocks.

    Raises:
        ObjectChanged: on a read after the object was replaced.
    """

    def __init__(self, store: Store, key: str) -> None:
        info = store.info(key)
        super().__init__(info.size_bytes)
        self._store, self._key, self._etag = store, key, info.etag

    def read_at(self, position: int, length: int) -> bytes:
        return self._store.read_range(self._key, position, length, etag=self._etag)
