"""Read objects over plain HTTP connections, one a thread: the hot path, where a general client's work per call adds up.

Measured against a local SeaweedFS, 40 kB objects, client's processor time per object on a busy machine: s3fs 3.5 ms,
pyarrow 1.4 ms (it sends HEAD and GET), this 0.8 ms; and this sends one request, pinned to an etag. Requests are signed
by botocore; address and credentials come from the s3fs client, so that every way of configuring them works here too.
obstore was tried in its place and not taken: docs/benchmarks/2026-11-29-obstore.md.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import fsspec.asyn
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from infra.s3_errors import Refusal, RefusedError

CREDENTIALS_FRESH_S = 30.0  # botocore renews temporary ones minutes before they expire


@dataclass(frozen=True, slots=True)
class Body:
    """A whole answer to a GET: the bytes, and the etag they belong to."""

    data: bytes
    etag: str


class NotDirectError(Exception):
    """Raised when this way is not open: a proxy, no credentials, or a redirect. The caller takes the general client."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a bucket answers."""

    secure: bool
    host: str
    port: int
    netloc: str
    base: str  # path before the key, with its slash


class DirectReader:
    """GETs of one client. Thread-safe: every thread has a connection of its own.

    Args:
        filesystem: the s3fs client that knows endpoint, region and credentials.
    """

    def __init__(self, filesystem: Any, *, connect_timeout_s: float, read_timeout_s: float) -> None:
        self._fs = filesystem
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._lock = threading.Lock()
        self._places: dict[str, _Place | None] = {}
        self._credentials: tuple[float, Credentials] | None = None
        self._region = ""
        self._local = threading.local()

    def read(self, bucket: str, key: str, *, etag: str | None, byte_range: tuple[int, int] | None) -> Body:
        """The object, or bytes ``first..last`` (inclusive) of it, of the version ``etag`` if given.

        Raises:
            NotDirectError: see there.
            RefusedError: the server said no.
            OSError, http.client.HTTPException: no answer, or a torn one.
        """
        place = self._place(bucket)
        path = place.base + urllib.parse.quote(key, safe="/")
        headers = {}
        if etag is not None:
            headers["If-Match"] = f'"{etag}"'
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range[0]}-{byte_range[1]}"
        if self._fs.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        scheme = "https" if place.secure else "http"
        request = AWSRequest("GET", f"{scheme}://{place.netloc}{path}", headers=headers)
        if not self._fs.anon:
            S3SigV4Auth(self._fresh_credentials(), "s3", self._region).add_auth(request)
        response, data = self._send(place, path, dict(request.headers.items()))
        if response.status in (200, 206):
            return Body(data, (response.getheader("ETag") or "").strip('"'))
        refusal = Refusal(response.status, _error_code(data))
        if refusal.status in (301, 307, 308) or refusal.code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
            with self._lock:
                self._places[bucket] = None  # the bucket lives elsewhere; the general client follows
            raise NotDirectError
        raise RefusedError(refusal)

    def _send(self, place: _Place, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        connection, is_used = self._connection(place)
        try:
            return _exchange(connection, path, headers)
        except (OSError, http.client.HTTPException) as error:
            self._forget(place)
            # A server may close a kept connection at any time: a fresh one tells whether there is a real failure.
            if not is_used or isinstance(error, TimeoutError | http.client.IncompleteRead):
                raise
        connection, _ = self._connection(place)
        try:
            return _exchange(connection, path, headers)
        except (OSError, http.client.HTTPException):
            self._forget(place)
            raise

    def _connection(self, place: _Place) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it has been used before."""
        kept: dict[_Place, http.client.HTTPConnection] = self._local.__dict__.setdefault("kept", {})
        if place in kept:
            return kept[place], True
        if place.secure:
            context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                place.host, place.port, timeout=self._connect_timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(place.host, place.port, timeout=self._connect_timeout_s)
        connection.connect()
        connection.sock.settimeout(self._read_timeout_s)
        kept[place] = connection
        return connection, False

    def _forget(self, place: _Place) -> None:
        connection = self._local.kept.pop(place, None)
        if connection is not None:
            connection.close()

    # --- what the s3fs client knows -----------------------------------------------------------------------------

    def _place(self, bucket: str) -> _Place:
        with self._lock:
            if bucket not in self._places:
                url, self._region = fsspec.asyn.sync(self._fs.loop, self._ask, bucket)
                self._places[bucket] = _place_of(url)
            place = self._places[bucket]
        if place is None:
            raise NotDirectError
        return place

    async def _ask(self, bucket: str) -> tuple[str, str]:
        client = await self._fs.set_session()
        url = await client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        return url, client.meta.region_name

    def _fresh_credentials(self) -> Credentials:
        with self._lock:
            now = time.monotonic()
            if self._credentials is None or now - self._credentials[0] > CREDENTIALS_FRESH_S:
                found = fsspec.asyn.sync(self._fs.loop, self._ask_credentials)
                if found is None:
                    raise NotDirectError
                self._credentials = (now, Credentials(found.access_key, found.secret_key, found.token))
            return self._credentials[1]

    async def _ask_credentials(self) -> Any:
        client = await self._fs.set_session()
        credentials = client._request_signer._credentials
        return None if credentials is None else await credentials.get_frozen_credentials()


def _place_of(presigned_url: str) -> _Place | None:
    parts = urllib.parse.urlsplit(presigned_url)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    secure = parts.scheme == "https"
    return _Place(secure, host, parts.port or (443 if secure else 80), parts.netloc, parts.path.removesuffix("k"))


def _exchange(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.putrequest("GET", path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response, response.read()  # IncompleteRead if it is shorter than announced


def _error_code(body: bytes) -> str:
    try:
        return ElementTree.fromstring(body[:65536]).findtext("Code") or ""
    except ElementTree.ParseError:
        return ""
