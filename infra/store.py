"""Object storage and folders behind one small interface; :func:`open_store` is the door."""

from __future__ import annotations

import os
import posixpath
from contextlib import nullcontext

from infra.errors import UsageError
from infra.outage import Patience
from infra.store_keys import split_s3_uri
from infra.store_local import LocalStore
from infra.store_types import ObjectInfo, Store, StoreCapabilities, Waiting

__all__ = [
    "ObjectInfo", "Store", "StoreCapabilities", "absolute_uri", "folder_of", "is_local", "open_store", "resolve_name",
    "split_uri",
]  # fmt: skip


def open_store(uri: str, *, patience: Patience | None = None, waiting: Waiting = nullcontext) -> Store:
    """The store at ``uri``: a folder, ``file://...`` or ``s3://bucket[/prefix]``. Credentials: environment or role.

    Opening touches nothing: a missing bucket or folder shows at the first use (the first write creates a local root).
    S3 reads the standard variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
    AWS_ENDPOINT_URL (also AWS_ENDPOINT_URL_S3) or the instance role. AWS_NO_SIGN_REQUEST (true, or names of buckets)
    reads without credentials, AWS_REQUEST_PAYER=requester pays for reading where owners ask for it.

    Args:
        patience: of a bucket: how long an outage is waited for beyond the retries of a request, before it is a
            StoreOutage. Without it a request that has used up its attempts is StoreUnavailable.
        waiting: see :data:`infra.store_types.Waiting`.

    Raises:
        UsageError: an empty URI or a scheme that is not known.
    """
    if not is_local(uri):
        from infra.store_s3 import S3Store  # aiohttp and botocore: half a second that work on folders need not wait

        return S3Store(uri, patience=patience, waiting=waiting)
    return LocalStore(_local_path(uri), waiting=waiting)


def split_uri(uri: str) -> tuple[str, str]:
    """The root to open and the key below it; nothing is URL-decoded, ever.

    ``s3://b/x/y.jpg`` -> ``("s3://b", "x/y.jpg")``; ``/data/a b#.jpg`` -> ``("/data", "a b#.jpg")``.
    """
    if not is_local(uri):
        bucket, key = split_s3_uri(uri)
        return f"s3://{bucket}", key
    folder, name = os.path.split(_local_path(uri))
    return folder, name


def is_local(uri: str) -> bool:
    """Whether a URI names a place in this machine's file system; else it is one in a bucket."""
    return not uri.startswith("s3://")


def absolute_uri(uri: str) -> str:
    """A folder's URI as those of its objects begin: ``a/b/`` -> ``/here/a/b``, ``s3://b/x/`` -> ``s3://b/x``."""
    return _local_path(uri) if is_local(uri) else uri.rstrip("/")


def folder_of(uri: str) -> str:
    """The URI of the folder that an object lies in: ``s3://b/x/y.json`` -> ``s3://b/x``, ``y.json`` -> ``/here``."""
    return absolute_uri(uri).rpartition("/")[0] or "/"


def resolve_name(root: str, name: str) -> str | None:
    """The URI of a file name relative to ``root``, an :func:`absolute_uri`; URIs of buckets and absolute paths stay.

    ``..`` is followed inside the file system or the bucket; None if it leads out of the bucket. A backslash divides
    folders, as on Windows, unless a file is called so.
    """
    if not is_local(name):
        return name
    if "\\" in name and not (is_local(root) and os.path.lexists(os.path.join(root, name))):
        name = name.replace("\\", "/")
    if not {".", "..", ""} & set(name.split("/")):
        return f"{root.rstrip('/')}/{name}"
    if is_local(root):
        return posixpath.normpath(posixpath.join(root, name))
    bucket, prefix = split_s3_uri(root)
    path = posixpath.normpath(posixpath.join(prefix, name.lstrip("/")))
    return None if path.startswith("..") else f"s3://{bucket}/{path}"


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
