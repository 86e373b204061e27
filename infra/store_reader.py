"""A seekable file over ranged reads of one version of an object."""

from __future__ import annotations

import io

from infra.store_types import Store


class RangeReader(io.RawIOBase):
    """Raw reads become ranged GETs pinned to the etag seen at opening; wrap it in ``io.BufferedReader`` for blocks.

    Raises:
        ObjectChanged: on a read after the object was replaced.
    """

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        info = store.info(key)
        self._store = store
        self._key = key
        self._etag = info.etag
        self._size_bytes = info.size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size_bytes - self._position)
        if length <= 0:
            return 0
        data = self._store.read_range(self._key, self._position, length, etag=self._etag)
        buffer[:length] = data
        self._position += length
        return length
