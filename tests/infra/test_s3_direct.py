"""The hot path of reading: one request each, connections kept, and a way round where it is not open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import infra.s3_direct
from infra.errors import ObjectChanged, ObjectGone
from infra.retry import RetryPolicy
from infra.s3_direct import _place_of
from infra.store_s3 import S3Store
from tests.faults import Fault, FaultyS3

QUICK = RetryPolicy(attempts=3, first_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture
def store(faulty_s3: FaultyS3, s3_bucket: str) -> S3Store:
    return S3Store(s3_bucket, policy=QUICK)


@pytest.mark.s3
class TestReading:
    def test_a_read_is_one_request(self, store: S3Store, faulty_s3: FaultyS3) -> None:
        etag = store.put("x", b"0123456789")
        faulty_s3.clear()
        assert store.get("x", etag=etag) == b"0123456789"
        assert store.read_range("x", 2, 3, etag=etag) == b"234"
        assert [method for method, _ in faulty_s3.requests] == ["GET", "GET"]

    def test_a_kept_connection_that_the_server_closed_is_opened_anew_without_a_word(
        self, store: S3Store, faulty_s3: FaultyS3
    ) -> None:
        store.put("x", b"data")
        assert store.get("x") == b"data"  # from now on the connection is kept
        faulty_s3.add(Fault("drop_response", method="GET"))
        assert store.get("x") == b"data"
        assert store.retry_counts() == {}

    def test_a_fresh_connection_that_breaks_is_a_failure_to_be_counted(
        self, store: S3Store, faulty_s3: FaultyS3
    ) -> None:
        store.put("x", b"data")
        faulty_s3.add(Fault("drop_response", method="GET"))
        with ThreadPoolExecutor(1) as thread:  # a thread without a connection
            assert thread.submit(store.get, "x").result() == b"data"
        assert store.retry_counts() == {"get": 1}

    def test_an_empty_object_is_read(self, store: S3Store) -> None:
        store.put("empty", b"")
        assert store.get_with_etag("empty")[0] == b""
        with store.open("empty") as file:
            assert file.read() == b""

    @pytest.mark.parametrize("status", [301, 307])
    def test_a_bucket_that_moved_is_left_to_the_general_client(
        self, store: S3Store, faulty_s3: FaultyS3, status: int
    ) -> None:
        store.put("x", b"data")
        moved = faulty_s3.add(Fault("status", method="GET", status=status, code="PermanentRedirect"))
        assert store.get("x") == b"data"
        assert moved.seen == 1
        with pytest.raises(infra.s3_direct.NotDirectError):
            store._client._direct.read("tests", "x", etag=None, byte_range=None)
        assert store.get("x") == b"data"

    def test_behind_a_proxy_the_general_client_keeps_every_promise(
        self, store: S3Store, monkeypatch: pytest.MonkeyPatch, faulty_s3: FaultyS3
    ) -> None:
        monkeypatch.setattr(infra.s3_direct, "_place_of", lambda url: None)
        monkeypatch.setenv("AWS_VISIONMILL_TEST", "own client")  # clients are shared by environment
        store = S3Store(store.uri, policy=QUICK)
        etag = store.put("x", b"0123456789")
        assert store.get("x", etag=etag) == b"0123456789"
        assert store.read_range("x", 2, 3, etag=etag) == b"234"
        with pytest.raises(ObjectChanged):
            store.get("x", etag="0" * 32)
        with pytest.raises(ObjectChanged):
            store.read_range("x", 20, 3)
        with pytest.raises(ObjectGone):
            store.get("absent")
        torn = faulty_s3.add(Fault("torn_body", method="GET", after_bytes=4))
        assert store.get("x") == b"0123456789"
        assert torn.seen == 1


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "base"),
    [
        ("http://127.0.0.1:8333/bucket/k?X-Amz-Signature=1", False, "127.0.0.1", 8333, "/bucket/"),
        (
            "https://bucket.s3.eu-west-1.amazonaws.com/k?X-Amz-Date=1",
            True,
            "bucket.s3.eu-west-1.amazonaws.com",
            443,
            "/",
        ),
        ("https://minio.example/prefix/bucket/k", True, "minio.example", 443, "/prefix/bucket/"),
    ],
)
def test_addresses_of_either_style_are_understood(
    url: str, secure: bool, host: str, port: int, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    place = _place_of(url)
    assert place is not None
    assert (place.secure, place.host, place.port, place.base) == (secure, host, port, base)


def test_a_proxy_in_the_environment_closes_the_direct_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert _place_of("https://bucket.s3.amazonaws.com/k") is None
    assert _place_of("https://inside.example/bucket/k") is not None
