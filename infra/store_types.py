"""What every store can do, and what it says about objects; :func:`infra.store.open_store` makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

Waiting = Callable[[], AbstractContextManager[None]]
"""Entered, by the thread that asks, around all that waits for a disk or a server: who watches it sees that it waits."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object. ``key`` is relative to the store's root, exactly as stored (never URL-decoded)."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class StoreCapabilities:
    """What the probe found out by trying."""

    conditional_create: bool  # a second create of the same key is refused
    compare_and_swap: bool  # an overwrite with a stale etag is refused


class Store(Protocol):
    """A root URI and what can be done below it. Safe for many threads; never pickled (build it where it is used).

    Every method raises the ``StoreError`` subclasses of :mod:`infra.errors`; transient failures have been retried with
    bounded backoff before. Keys are data: a key that would leave the root is refused.
    """

    uri: str  # normalised root, no trailing slash

    def uri_of(self, key: str) -> str:
        """The full URI of a key."""

    def put_if_absent(self, key: str, data: bytes, *, token: bytes | None = None) -> bool:
        """Create ``key`` with ``data`` in one conditional step; True if this call (or a retry of it) created it.

        ``token`` is a byte string that occurs in ``data`` and nowhere else (an attempt id): after a refused create it
        is looked for in the stored object, because the refusal may answer our own retried request. Empty data
        is refused.
        """

    def put_file_if_absent(self, key: str, path: Path, *, token: bytes | None = None) -> bool:
        """As :meth:`put_if_absent`, from a local file of any size (multipart with a conditional completion)."""

    def put(self, key: str, data: bytes) -> str:
        """Create or overwrite; returns the etag."""

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Overwrite if the current etag is ``etag`` (None: if absent) and return the new etag; else Conflict."""

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        """All bytes. With ``etag``: ObjectChanged if the object is another one by now."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """All bytes and the etag they belong to, for a later :meth:`compare_and_swap`."""

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """Exactly ``length`` bytes (a torn answer is retried, then StoreUnavailable).

        ObjectChanged if the object ends before ``offset + length``: it is not the one that was listed.
        """

    def open(self, key: str, *, block_bytes: int = 1 << 20) -> BinaryIO:
        """A seekable reader that fetches blocks on demand, all of one version of the object (else ObjectChanged)."""

    def info(self, key: str) -> ObjectInfo:
        """Size and etag; ObjectGone if there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects below ``prefix`` (a string prefix of keys), streamed, never from a cache.

        The order is the same at every call as long as nothing changes: byte order of keys for folders and AWS, folder
        by folder on servers that keep a tree (SeaweedFS), so don't merge two listings by order.
        """

    def delete(self, key: str) -> None:
        """Remove one object; no error if it is gone already."""

    def probe(self, prefix: str = "_probe/") -> StoreCapabilities:
        """Try two conditional creates and a stale swap on a scratch key (removed afterwards) and say what held."""

    def retry_counts(self) -> dict[str, int]:
        """How many attempts were repeated since this store was opened, by operation."""
