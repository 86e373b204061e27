"""S3 and its look-alikes as a store: conditional requests decide who wins; a refusal is read back before it counts."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from infra.errors import (
    BucketMissing,
    Conflict,
    ObjectChanged,
    ObjectGone,
    StoreError,
    StoreOutage,
    StoreUnavailable,
    is_transient,
)
from infra.outage import OutageWatch, Patience
from infra.retry import RetryCounts, RetryPolicy, with_retries
from infra.s3_client import S3Client, shared_client
from infra.s3_direct import Body
from infra.s3_errors import refusal_of
from infra.s3_multipart import MULTIPART_FROM_BYTES, ConditionalUpload
from infra.settings import settings
from infra.store_keys import check_key, split_s3_uri
from infra.store_probe import probe_store
from infra.store_reader import RangeReader
from infra.store_types import ObjectInfo, StoreCapabilities, Waiting

T = TypeVar("T")
SEARCH_BLOCK_BYTES = 8 << 20


class S3Store:
    """A bucket, or a prefix in one. See :class:`infra.store.Store` for the contract.

    Etags are those of the server without quotes. Works with any server that honours ``If-None-Match: *`` on PUT and on
    CompleteMultipartUpload; :meth:`probe` tells.
    """

    def __init__(
        self,
        uri: str,
        *,
        policy: RetryPolicy | None = None,
        patience: Patience | None = None,
        waiting: Waiting = nullcontext,
    ) -> None:
        bucket, prefix = split_s3_uri(uri)
        prefix = prefix.strip("/")
        if prefix:
            check_key(prefix, f"s3://{bucket}", folders=False)
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._policy = policy or RetryPolicy(settings().store_attempts, settings().store_first_delay_s)
        self._counts, self._waiting = RetryCounts(), waiting
        self._client: S3Client = shared_client(bucket)
        self._watch = None if patience is None else OutageWatch(self.uri, patience, self._serves_others)
        self._served_key: str | None = None  # the last key that was read, to ask whether others still can be

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store is not pickled (it holds a secret): send its URI and call open_store where it is used")

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def put_if_absent(self, key: str, data: bytes, *, token: bytes | None = None) -> bool:
        _check_content(len(data), self.uri_of(key))
        uncertain = _Flag()
        try:
            self._try(lambda: self._call("put_object", key, Body=data, IfNoneMatch="*"), "put_if_absent", uncertain)
        except StoreError as error:
            if not _is_precondition(error):
                raise
            return self._is_ours(key, data, token, uncertain.raised)
        return True

    def put_file_if_absent(self, key: str, path: Path, *, token: bytes | None = None) -> bool:
        size_bytes = path.stat().st_size
        _check_content(size_bytes, self.uri_of(key))
        if size_bytes < MULTIPART_FROM_BYTES:
            return self.put_if_absent(key, path.read_bytes(), token=token)
        upload = ConditionalUpload(
            call=lambda operation, **more: self._call(operation, key, **more),
            retry=lambda attempt, uncertain=None: self._try(attempt, "put_file_if_absent", uncertain),
        )
        outcome = upload.run(path)
        if outcome.created:
            return True
        return self._holds_file(key, path, token, outcome.uncertain)

    def put(self, key: str, data: bytes) -> str:
        return _etag(self._try(lambda: self._call("put_object", key, Body=data), "put"))

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        _check_content(len(data), self.uri_of(key))
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        uncertain = _Flag()
        try:
            answer = self._try(
                lambda: self._call("put_object", key, Body=data, **condition), "compare_and_swap", uncertain
            )
        except ObjectGone as error:
            raise Conflict(f"{self.uri_of(key)} was removed by somebody else") from error
        except StoreError as error:
            if not _is_precondition(error):
                raise
            return self._own_swap(key, data, uncertain.raised)
        return _etag(answer)

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        return self._read(key, "get", etag).data

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        body = self._read(key, "get", None)
        return body.data, body.etag

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        if offset < 0 or length < 0:
            raise StoreError(f"a range of {length} bytes at {offset} of {self.uri_of(key)} makes no sense")
        if length == 0:
            return b""
        body = self._read(key, "read_range", etag, (offset, offset + length - 1))
        if len(body.data) == length:
            return body.data
        if len(body.data) > length:
            raise StoreError(f"{self.uri_of(key)}: the server ignores ranges", hint="It cannot be read in parts.")
        raise self._too_short(key, offset + length)

    def open(self, key: str, *, block_bytes: int = 1 << 20) -> BinaryIO:
        return io.BufferedReader(RangeReader(self, key), buffer_size=max(block_bytes, 1))

    def info(self, key: str) -> ObjectInfo:
        answer = self._try(lambda: self._call("head_object", key), "info", reads=True)
        return ObjectInfo(key, int(answer["ContentLength"]), _etag(answer))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        token: dict[str, str] = {}
        while True:
            page = self._try(lambda more=token: self._list_page(prefix, more), "list")  # type: ignore[misc]
            for entry in page.get("Contents", ()):
                yield ObjectInfo(entry["Key"][len(self._base) :], int(entry["Size"]), entry["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        try:
            self._try(lambda: self._call("delete_object", key), "delete")
        except ObjectGone:
            return

    def probe(self, prefix: str = "_probe/") -> StoreCapabilities:
        return probe_store(self, prefix)

    def retry_counts(self) -> dict[str, int]:
        return self._counts.snapshot()

    # --- requests -----------------------------------------------------------------------------------------------

    def _try(
        self, attempt: Callable[[], T], operation: str, uncertain: _Flag | None = None, *, reads: bool = False
    ) -> T:
        """With retries, and patience if the store has it. ``reads``: one object, unreadable perhaps for itself."""
        with self._waiting():
            if self._watch is not None:
                return self._try_patiently(self._watch, attempt, operation, uncertain, reads)
            return with_retries(
                attempt, operation=operation, policy=self._policy, counts=self._counts, on_failure=uncertain
            )

    def _try_patiently(
        self, watch: OutageWatch, attempt: Callable[[], T], operation: str, uncertain: _Flag | None, reads: bool
    ) -> T:
        request = watch.request(reads_object=reads)

        def failed(error: BaseException) -> None:
            if uncertain is not None:
                uncertain(error)
            request.failed(error)

        try:
            answer = with_retries(
                attempt,
                operation=operation,
                policy=self._policy,
                counts=self._counts,
                on_failure=failed,
                hold=request.is_worth_waiting,
            )
        except StoreError as error:
            if not isinstance(error, StoreUnavailable | StoreOutage) and _refusal(error) is not None:
                watch.answered()
            raise
        watch.answered()
        return answer

    def _serves_others(self) -> bool:
        """Whether the last object that could be read still can; a refusal is an answer, too."""
        if self._served_key is None:
            return False
        try:
            self._client.read(self.uri, self._bucket, self._base + self._served_key, byte_range=(0, 0))
        except StoreError as error:
            return not is_transient(error)
        return True

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        name = self._base + check_key(key, self.uri, folders=False)
        return self._client.call(operation, self.uri_of(key), Bucket=self._bucket, Key=name, **arguments)

    def _list_page(self, prefix: str, token: dict[str, str]) -> dict[str, Any]:
        try:
            return self._client.call(
                "list_objects_v2", f"{self.uri}/{prefix}", Bucket=self._bucket, Prefix=self._base + prefix, **token
            )
        except ObjectGone as error:  # some servers answer a plain 404
            raise BucketMissing(f"the bucket of {self.uri} does not exist", hint="Check its name.") from error

    def _read(self, key: str, operation: str, etag: str | None, byte_range: tuple[int, int] | None = None) -> Body:
        name = self._base + check_key(key, self.uri, folders=False)
        uri = self.uri_of(key)
        try:
            body = self._try(
                lambda: self._client.read(uri, self._bucket, name, etag=etag, byte_range=byte_range),
                operation,
                reads=True,
            )
        except StoreError as error:
            refusal = _refusal(error)
            if refusal is not None and refusal.is_precondition:
                raise ObjectChanged(f"{uri} changed since it was listed (expected etag {etag})") from error
            if refusal is not None and refusal.status == 416:
                raise ObjectChanged(f"{uri} is shorter than when it was listed") from error
            raise
        if etag is not None and body.etag and body.etag != etag:  # a server that ignores If-Match on GET
            raise ObjectChanged(f"{uri} changed since it was listed (expected etag {etag})")
        self._served_key = key
        return body

    def _too_short(self, key: str, end: int) -> ObjectChanged:
        return ObjectChanged(f"{self.uri_of(key)} ends before byte {end}: it is not the object that was listed")

    # --- whose success was it? ----------------------------------------------------------------------------------

    def _is_ours(self, key: str, data: bytes, token: bytes | None, uncertain: bool) -> bool:
        """After a 412: is the stored object the one this call wrote (its answer was lost on the way)?"""
        if token is None and not uncertain:
            return False
        try:
            stored = self._read(key, "get", None).data
        except ObjectGone:
            raise Conflict(f"{self.uri_of(key)} was created and removed by somebody else meanwhile") from None
        return token in stored if token is not None else stored == data

    def _own_swap(self, key: str, data: bytes, uncertain: bool) -> str:
        if uncertain:
            body = self._read(key, "get", None)
            if body.data == data:
                return body.etag
        raise Conflict(f"{self.uri_of(key)} was changed by somebody else")

    def _holds_file(self, key: str, path: Path, token: bytes | None, uncertain: bool) -> bool:
        """As :meth:`_is_ours` for an object that may be too large for memory."""
        if (token is None and not uncertain) or self.info(key).size_bytes != path.stat().st_size:
            return False
        with self.open(key, block_bytes=SEARCH_BLOCK_BYTES) as stored:
            if token is not None:
                return _occurs(token, stored)
            with path.open("rb") as local:
                return _digest(stored) == _digest(local)


class _Flag:
    """Remembers that an attempt failed in a way that may have hidden a success."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, error: BaseException) -> None:
        self.raised = True


def _check_content(size_bytes: int, uri: str) -> None:
    if size_bytes == 0:
        raise StoreError(f"refusing to create {uri} without content: an empty create has no owner")


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _refusal(error: StoreError) -> Any:
    return refusal_of(error.__cause__) if error.__cause__ is not None else None


def _is_precondition(error: StoreError) -> bool:
    refusal = _refusal(error)
    return refusal is not None and refusal.is_precondition


def _occurs(token: bytes, stream: BinaryIO) -> bool:
    tail = b""
    while block := stream.read(SEARCH_BLOCK_BYTES):
        if token in tail + block:
            return True
        tail = block[-len(token) :]
    return False


def _digest(stream: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := stream.read(SEARCH_BLOCK_BYTES):
        digest.update(block)
    return digest.digest()


def create_bucket(uri: str, client: S3Client | None = None) -> bool:
    """Create the bucket of ``s3://bucket[/...]``; False if it was there already (and ours)."""
    bucket, _ = split_s3_uri(uri)
    client = client or shared_client(bucket)
    try:
        with_retries(lambda: client.call("create_bucket", uri, Bucket=bucket), operation="create_bucket")
    except StoreError as error:
        refusal = _refusal(error)
        if refusal is not None and refusal.code in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            return False
        raise
    return True
