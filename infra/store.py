"""Object storage and folders behind one small interface; :func:`open_store` is the door."""

from __future__ import annotations

import os

from infra.errors import UsageError
from infra.store_keys import split_s3_uri
from infra.store_local import LocalStore
from infra.store_types import ObjectInfo, Store, StoreCapabilities

__all__ = ["ObjectInfo", "Store", "StoreCapabilities", "open_store", "split_uri"]


def open_store(uri: str) -> Store:
    """The store at ``uri``: a folder, ``file://...`` or ``s3://bucket[/prefix]``. Credentials: environment or role.

    Opening touches nothing: a missing bucket or folder shows at the first use (the first write creates a local root).
    S3 reads the standard variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
    AWS_ENDPOINT_URL (also AWS_ENDPOINT_URL_S3) or the instance role.

    Raises:
        UsageError: an empty URI or a scheme that is not known.
    """
    if uri.startswith("s3://"):
        from infra.store_s3 import S3Store  # aiohttp and botocore: half a second that work on folders need not wait

        return S3Store(uri)
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
