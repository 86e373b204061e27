"""Keys are data: checked once, here, never decoded, never normalised."""

from __future__ import annotations

from infra.errors import StoreError, UsageError

RESERVED_FOLDER = ".visionmill"  # scratch and lock files of a local root live here, hidden from listings


def check_key(key: str, uri: str, *, folders: bool) -> str:
    """``key`` itself if it names an object below the root, else StoreError.

    Args:
        key: relative name with ``/`` between segments.
        uri: the root, for the message.
        folders: segments become real folders (local), so that empty segments would alias another key.
    """
    segments = key.split("/")
    if not key or "\0" in key:
        raise StoreError(f"the key {key!r} below {uri} is empty or holds a NUL character")
    if key.startswith("/") or any(segment in (".", "..") for segment in segments):
        raise StoreError(f"the key {key!r} would leave its root {uri}", hint="Keys have no . and .. parts.")
    if folders and "" in segments:
        raise StoreError(f"the key {key!r} below {uri} has an empty part", hint="Remove the doubled or trailing slash.")
    if folders and segments[0] == RESERVED_FOLDER:
        raise StoreError(f"the key {key!r} below {uri} lies in the reserved folder {RESERVED_FOLDER}")
    return key


def split_s3_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``("bucket", "a/b")``; nothing is decoded. UsageError without a bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or "@" in bucket:
        # user:secret@bucket is a habit from other URIs; it would end up in rows and logs
        raise UsageError("an S3 URI is s3://bucket[/prefix], without credentials in it", hint="Set AWS_* instead.")
    return bucket, key
