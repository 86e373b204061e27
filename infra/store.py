"""Object storage and folders behind one small interface; :func:`open_store` is the door."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from infra.errors import UsageError
from infra.store_keys import split_s3_uri


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


def open_store(uri: str) -> Store:
    """The store at ``uri``: a folder, ``file://...`` or ``s3://bucket[/prefix]``. Credentials: environment or role.

    Opening touches nothing: a missing bucket or folder shows at the first use (the first write creates a local root).
    S3 reads the standard variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
    AWS_ENDPOINT_URL (also AWS_ENDPOINT_URL_S3) or the instance role.

    Raises:
        UsageError: an empty URI or a scheme that is not known.
    """
    if uri.startswith("s3://"):
        from infra.store_s3 import S3Store

        return S3Store(uri)
    from infra.store_local import LocalStore

    return LocalStore(_local_path(uri))


def split_uri(uri: str) -> tuple[str, str]:
    """The root to open and the key below it; nothing is URL-decoded, ever.

    ``s3://b/x/y.jpg`` -> ``("s3://b", "x/y.jpg")``; ``/data/a b#.jpg`` -> ``("/data", "a b#.jpg")``.
    """
    if uri.startswith("s3://"):
        bucket, key = split_s3_uri(uri)
        return f"s3://{bucket}", key
    folder, name = os.path.split(_local_path(uri))
    return folder, name


def _local_path(uri: str) -> str:
    if not uri:
        raise UsageError("an empty URI names no store", hint="Give a folder or s3://bucket/prefix.")
    if uri.startswith("file://"):
        path = uri.removeprefix("file://").removeprefix("localhost")
        if not path.startswith("/"):
            raise UsageError(f"{uri!r} is not a local file URI", hint="Use file:///absolute/path or a plain path.")
    elif "://" in uri:
        scheme = uri.partition("://")[0]
        raise UsageError(f"unknown scheme {scheme!r} in a store URI", hint="Use a folder, file:/// or s3://.")
    else:
        path = os.path.expanduser(uri)
    return os.path.abspath(path)
