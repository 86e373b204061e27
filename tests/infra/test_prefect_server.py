"""Calls of a Prefect server's REST API: what is asked again and what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from infra.prefect_server import PrefectApiError, request_api


class Scripted(HTTPServer):
    """Answers with the codes that are left, the last one for ever, and counts the calls."""

    codes: list[int]
    calls = 0


class Handler(BaseHTTPRequestHandler):
    """Of a scripted server."""

    server: Scripted

    def do_POST(self) -> None:
        """One code, and the body that was sent."""
        self.server.calls += 1
        code = self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def post(server: Scripted, timeout_s: float = 20.0) -> object:
    return request_api(f"http://127.0.0.1:{server.server_port}", "", "POST", "/x", {"a": 1}, timeout_s=timeout_s)


def test_a_server_whose_database_is_locked_is_asked_again_with_the_same_body(server: Scripted) -> None:
    server.codes = [503, 503, 200]
    assert post(server) == {"a": 1}
    assert server.calls == 3


def test_a_server_that_stays_locked_is_given_up_when_the_time_is_over(server: Scripted) -> None:
    server.codes = [503]
    with pytest.raises(PrefectApiError, match="answered 503"):
        post(server, timeout_s=0.5)
    assert server.calls > 1


def test_a_refusal_is_not_repeated(server: Scripted) -> None:
    server.codes = [409]
    with pytest.raises(PrefectApiError, match="answered 409"):
        post(server)
    assert server.calls == 1
