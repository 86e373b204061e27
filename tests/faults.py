"""A real HTTP proxy in front of a real S3 server that does, on command, what networks and stores do on bad days.

    with FaultyS3(endpoint) as proxy:            # or the fixture ``faulty_s3``, which also sets AWS_ENDPOINT_URL
        proxy.add(Fault("drop_response", method="PUT"))     # the PUT happens, its answer is lost, once
        proxy.add(Fault("status", status=409, code="ConditionalRequestConflict", times=1))
        proxy.add(Fault("ignore_conditions", times=None))   # a store that accepts If-None-Match and ignores it

Signatures stay valid: requests keep the client's own Host header, or are signed anew where a header is removed.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from infra.seaweedfs import S3Endpoint

CONDITIONS = ("if-none-match", "if-match")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}

Kind = Literal[
    "drop_request",  # never reaches the store; the connection breaks
    "drop_response",  # the store did it; the answer is lost
    "status",  # answered with ``status`` and ``code``; never reaches the store
    "ignore_conditions",  # If-None-Match and If-Match are taken away
    "ignore_range",  # Range is taken away: the whole object comes with status 200
    "slow_answer",  # the body comes at ``bytes_per_s``
    "slow_upload",  # the body is taken at ``bytes_per_s``
    "delay",  # the answer comes ``delay_s`` later
    "public",  # the bucket is everybody's: what comes unsigned is signed on the way
    "requester_pays",  # who does not say that he pays is refused
    "torn_body",  # Content-Length is right, but only ``after_bytes`` bytes come
]


@dataclass
class Fault:
    """What goes wrong, for which requests, how often (``times=None``: always). ``path`` is looked for, decoded."""

    kind: Kind
    method: str = ""
    path: str = ""
    times: int | None = 1
    status: int = 503
    code: str = "SlowDown"
    body: bytes = b""  # of ``status``: this instead of an error with ``code``
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    after_bytes: int = 0
    seen: int = 0

    def matches(self, method: str, path: str) -> bool:
        wanted = self.times is None or self.seen < self.times
        return wanted and (not self.method or self.method == method) and self.path in path


class FaultyS3:
    """The proxy: ``url`` for clients, ``add`` and ``clear`` for tests, ``requests`` as they came: (method, path)."""

    def __init__(self, upstream: S3Endpoint) -> None:
        self.upstream = upstream
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, fault: Fault) -> Fault:
        """From now on; ``fault.seen`` counts how often it struck."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """No more faults, and forget the requests seen."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def count(self, method: str, path: str = "") -> int:
        """How many requests of ``method`` with ``path`` in their path came so far."""
        with self._lock:
            return sum(1 for one, where in self.requests if one == method and path in where)

    def strike(self, method: str, path: str) -> list[Fault]:
        """Note a request and take the faults that hit it."""
        with self._lock:
            self.requests.append((method, path))
            hits = [fault for fault in self._faults if fault.matches(method, path)]
            for fault in hits:
                fault.seen += 1
            return hits


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        decoded = urllib.parse.unquote(self.path)
        hits = {fault.kind: fault for fault in self.owner.strike(self.command, decoded)}
        body = self._take_body(hits.get("slow_upload"))
        if "drop_request" in hits:
            return self._break()
        if "delay" in hits:
            time.sleep(hits["delay"].delay_s)
        if "requester_pays" in hits and self.headers.get("x-amz-request-payer") != "requester":
            return self._refuse(Fault("status", status=403, code="AccessDenied"))
        if fault := hits.get("status"):
            return self._refuse(fault)
        status, headers, answer = self._forward(body, hits)
        if "drop_response" in hits:
            return self._break()
        self._answer(status, headers, answer, hits)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _take_body(self, slow: Fault | None) -> bytes:
        left = int(self.headers.get("Content-Length") or 0)
        if slow is None:
            return self.rfile.read(left)
        parts = []
        while left > 0:
            step = min(left, max(1, int(slow.bytes_per_s / 20)))
            parts.append(self.rfile.read(step))
            left -= step
            time.sleep(step / slow.bytes_per_s)
        return b"".join(parts)

    def _forward(self, body: bytes, hits: dict[Kind, Fault]) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        dropped = (CONDITIONS if "ignore_conditions" in hits else ()) + (("range",) if "ignore_range" in hits else ())
        if any(name.lower() in dropped for name in headers):
            headers = {name: value for name, value in headers.items() if name.lower() not in dropped}
            headers = self._sign_anew(headers, body)
        if "public" in hits and "authorization" not in map(str.lower, headers):
            headers = self._sign_anew(headers, body)
        host, _, port = self.owner.upstream.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _sign_anew(self, headers: dict[str, str], body: bytes) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        signature = ("authorization", "x-amz-date", "x-amz-content-sha256", "host")
        upstream = self.owner.upstream
        kept = {name: value for name, value in headers.items() if name.lower() not in signature}
        kept["Host"] = upstream.url.removeprefix("http://")
        request = AWSRequest(method=self.command, url=upstream.url + self.path, data=body, headers=kept)
        S3SigV4Auth(Credentials(upstream.access_key, upstream.secret_key), "s3", upstream.region).add_auth(request)
        return dict(request.headers.items())

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, hits: dict[Kind, Fault]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if torn := hits.get("torn_body"):
            self.wfile.write(body[: torn.after_bytes])
            return self._break()
        if slow := hits.get("slow_answer"):
            return self._trickle(body, slow.bytes_per_s)
        self.wfile.write(body)

    def _trickle(self, body: bytes, bytes_per_s: float) -> None:
        step = max(1, int(bytes_per_s / 20))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(step / bytes_per_s)

    def _refuse(self, fault: Fault) -> None:
        error = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>fault</Message></Error>".encode()
        self._answer(fault.status, [("Content-Type", "application/xml")], fault.body or error, {})

    def _break(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""
