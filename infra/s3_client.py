"""One S3 connection per process: calls through s3fs without its retries, caches and error classes."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Any

import fsspec.asyn
import s3fs
from aiobotocore.httpsession import AIOHTTPSession

from infra.errors import StoreError
from infra.s3_direct import Body, DirectReader, NotDirectError
from infra.s3_errors import translate_s3

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0  # silence between two chunks of an answer, not the whole answer
MAX_CONNECTIONS = 64
_TRUE = ("1", "true", "yes", "on")

_clients: dict[tuple[int, str, bool], S3Client] = {}
_clients_lock = threading.Lock()


def endpoint_url() -> str | None:
    """The endpoint from the environment; None means AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def is_anonymous(bucket: str) -> bool:
    """Whether requests about a bucket go without a signature, as public buckets allow: AWS_NO_SIGN_REQUEST is "true",
    or names it among others, so that results can go to another one."""
    said = os.environ.get("AWS_NO_SIGN_REQUEST", "")
    return said.lower() in _TRUE or bucket in (name.strip() for name in said.split(","))


def pays_for_requests() -> bool:
    """Whether this account pays for what it reads where owners ask for it (AWS_REQUEST_PAYER=requester)."""
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester"


class _OneTrySession(AIOHTTPSession):
    """aiohttp repeats a PUT by itself when a kept connection breaks, and tells nobody: the 412 looks like a loss."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


class S3Client:
    """Plain S3 calls, once each: no retry; errors are StoreErrors with ``__cause__``. Thread-safe, not fork-safe."""

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        key: str | None = None,
        secret: str | None = None,
        anonymous: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._fs = s3fs.S3FileSystem(
            anon=anonymous,
            requester_pays=pays_for_requests(),
            endpoint_url=endpoint or endpoint_url(),
            key=key,
            secret=secret,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "read_timeout": READ_TIMEOUT_S,
                "max_pool_connections": MAX_CONNECTIONS,
                # infra.retry repeats, so that a conditional write knows of each of its attempts
                "retries": {"total_max_attempts": 1},
                "http_session_cls": _OneTrySession,
            },
        )
        self._fs.retries = 1
        self._direct = DirectReader(self._fs, connect_timeout_s=CONNECT_TIMEOUT_S, read_timeout_s=READ_TIMEOUT_S)

    def call(self, operation: str, uri: str, **arguments: Any) -> dict[str, Any]:
        """One S3 operation (``put_object`` ...); ``uri`` is for messages only."""
        self._check_process()
        try:
            return self._fs.call_s3(operation, **arguments)
        except Exception as error:
            raise translate_s3(error, doing=operation, uri=uri) from error

    def read(
        self, uri: str, bucket: str, key: str, *, etag: str | None = None, byte_range: tuple[int, int] | None = None
    ) -> Body:
        """A whole object, or bytes ``first..last`` (inclusive). StoreUnavailable if less comes than was announced."""
        self._check_process()
        try:
            try:
                return self._direct.read(bucket, key, etag=etag, byte_range=byte_range)
            except NotDirectError:
                return self._read_by_s3fs(bucket, key, etag, byte_range)
        except Exception as error:
            raise translate_s3(error, doing="get_object", uri=uri) from error

    def _read_by_s3fs(self, bucket: str, key: str, etag: str | None, byte_range: tuple[int, int] | None) -> Body:
        arguments = {"Bucket": bucket, "Key": key}
        if etag is not None:
            arguments["IfMatch"] = f'"{etag}"'
        if byte_range is not None:
            arguments["Range"] = f"bytes={byte_range[0]}-{byte_range[1]}"
        data, answer = fsspec.asyn.sync(self._fs.loop, self._get, arguments)
        announced = answer.get("ContentLength")
        if announced is not None and announced != len(data):
            raise ConnectionError(f"{len(data)} bytes came of {announced} announced")
        return Body(data, str(answer.get("ETag", "")).strip('"'))

    async def _get(self, arguments: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
        answer = await self._fs._call_s3("get_object", **arguments)
        async with answer["Body"] as stream:
            return await stream.read(), answer

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                "this store was opened by another process and came here through fork",
                hint="Call open_store in the process that uses it; start processes with spawn, not fork.",
            )


def shared_client(bucket: str) -> S3Client:
    """The process's client for a bucket, the current endpoint and credentials; made on first use, anew after a fork."""
    anonymous = is_anonymous(bucket)
    key = (os.getpid(), _environment_digest(), anonymous)
    with _clients_lock:
        if key not in _clients:
            _clients[key] = S3Client(anonymous=anonymous)
        return _clients[key]


def _environment_digest() -> str:
    """Changes when the AWS variables change; a digest, so that no secret is held in yet another place."""
    relevant = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return hashlib.sha256(repr(relevant).encode()).hexdigest()


def _forget_after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
