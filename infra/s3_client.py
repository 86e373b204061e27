"""One S3 connection per process: calls through s3fs without its retries, caches and error classes."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from typing import Any

import fsspec.asyn
import s3fs
from aiobotocore.httpsession import AIOHTTPSession

from infra.errors import StoreError, StoreUnavailable
from infra.s3_errors import translate_s3

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0  # silence between two chunks of an answer, not the whole answer
MAX_CONNECTIONS = 64

_clients: dict[tuple[int, str], S3Client] = {}
_clients_lock = threading.Lock()


def endpoint_url() -> str | None:
    """The endpoint from the environment; None means AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@dataclass(frozen=True, slots=True)
class Body:
    """A whole answer to a GET: the bytes, the etag they belong to, and the object's full size."""

    data: bytes
    etag: str
    total_bytes: int


class _OneTrySession(AIOHTTPSession):
    """aiohttp repeats a PUT by itself when a kept connection breaks, and tells nobody: the 412 looks like a loss."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


class S3Client:
    """Plain S3 calls, once each: no retry; errors are StoreErrors with ``__cause__``. Thread-safe, not fork-safe."""

    def __init__(self, *, endpoint: str | None = None, key: str | None = None, secret: str | None = None) -> None:
        self._pid = os.getpid()
        self._fs = s3fs.S3FileSystem(
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

    def call(self, operation: str, uri: str, **arguments: Any) -> dict[str, Any]:
        """One S3 operation (``put_object`` ...); ``uri`` is for messages only."""
        self._check_process()
        try:
            return self._fs.call_s3(operation, **arguments)
        except Exception as error:
            raise translate_s3(error, doing=operation, uri=uri) from error

    def read(self, uri: str, **arguments: Any) -> Body:
        """``get_object`` with its whole body. StoreUnavailable if the body is shorter than announced."""
        self._check_process()
        try:
            body = fsspec.asyn.sync(self._fs.loop, self._read, arguments)
        except Exception as error:
            raise translate_s3(error, doing="get_object", uri=uri) from error
        announced = body[1].get("ContentLength")
        if announced is not None and announced != len(body[0]):
            raise StoreUnavailable(f"get_object {uri}: {len(body[0])} bytes came of {announced} announced")
        return Body(body[0], body[1].get("ETag", "").strip('"'), _total_bytes(body[1], len(body[0])))

    async def _read(self, arguments: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        response = await self._fs._call_s3("get_object", **arguments)
        async with response["Body"] as stream:
            return await stream.read(), response

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                "this store was opened by another process and came here through fork",
                hint="Call open_store in the process that uses it; start processes with spawn, not fork.",
            )


def shared_client() -> S3Client:
    """The process's client for the current endpoint and credentials; made on first use and after fork anew."""
    key = (os.getpid(), _environment_digest())
    with _clients_lock:
        if key not in _clients:
            _clients[key] = S3Client()
        return _clients[key]


def _environment_digest() -> str:
    """Changes when the AWS variables change; a digest, so that no secret is held in yet another place."""
    relevant = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return hashlib.sha256(repr(relevant).encode()).hexdigest()


def _total_bytes(response: dict[str, Any], length: int) -> int:
    total = str(response.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else length


def _forget_after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
