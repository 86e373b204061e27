"""Bad days of an S3 server, on the wire: lost answers, refusals that are no refusals, torn bodies, ignored headers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import infra.s3_client
import infra.s3_multipart
from infra.errors import (
    AccessDenied,
    BucketMissing,
    Conflict,
    NoSpaceLeft,
    ObjectChanged,
    StoreError,
    StoreUnavailable,
    is_transient,
)
from infra.retry import RetryPolicy
from infra.seaweedfs import S3Endpoint
from infra.store import open_store
from infra.store_s3 import S3Store
from tests.faults import Fault, FaultyS3

pytestmark = pytest.mark.s3
QUICK = RetryPolicy(attempts=4, first_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture
def store(faulty_s3: FaultyS3, s3_bucket: str) -> S3Store:
    return S3Store(s3_bucket, policy=QUICK)


def test_a_create_whose_answer_was_lost_is_recognised_as_our_own_by_its_token(
    store: S3Store, faulty_s3: FaultyS3
) -> None:
    lost = faulty_s3.add(Fault("drop_response", method="PUT"))
    assert store.put_if_absent("part", b"rows of attempt-7", token=b"attempt-7")
    assert lost.seen == 1
    assert faulty_s3.count("PUT") == 2  # the second was refused with 412 by our own first
    assert store.retry_counts() == {"put_if_absent": 1}


def test_a_create_whose_answer_was_lost_is_recognised_by_its_content_without_a_token(
    store: S3Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.add(Fault("drop_response", method="PUT"))
    assert store.put_if_absent("part", b"content")


def test_after_a_lost_answer_somebody_elses_object_is_not_ours(store: S3Store, faulty_s3: FaultyS3) -> None:
    store.put("part", b"rows of attempt-1")
    faulty_s3.add(Fault("drop_response", method="PUT"))
    assert not store.put_if_absent("part", b"rows of attempt-2", token=b"attempt-2")
    assert not store.put_if_absent("part", b"other content")
    assert store.get("part") == b"rows of attempt-1"


def test_a_refusal_to_a_retry_made_by_the_network_is_read_back_too(store: S3Store, faulty_s3: FaultyS3) -> None:
    """A load balancer repeated the request: our client saw one request only, answered with 412."""
    assert store.put_if_absent("part", b"rows of attempt-7", token=b"attempt-7")
    assert store.put_if_absent("part", b"rows of attempt-7", token=b"attempt-7")
    assert store.retry_counts() == {}


def test_409_means_try_again(store: S3Store, faulty_s3: FaultyS3) -> None:
    conflict = faulty_s3.add(Fault("status", method="PUT", status=409, code="ConditionalRequestConflict"))
    assert store.put_if_absent("part", b"content", token=b"content")
    assert conflict.seen == 1
    faulty_s3.add(Fault("status", method="PUT", status=409, code="ConditionalRequestConflict"))
    etag = store.info("part").etag
    assert store.compare_and_swap("part", b"next", etag)
    assert store.get("part") == b"next"


def test_a_swap_whose_answer_was_lost_is_recognised_as_our_own(store: S3Store, faulty_s3: FaultyS3) -> None:
    etag = store.put("pointer", b"one")
    faulty_s3.add(Fault("drop_response", method="PUT"))
    new = store.compare_and_swap("pointer", b"two", etag)
    assert store.get_with_etag("pointer") == (b"two", new)


def test_a_swap_that_lost_stays_lost_after_a_lost_answer(store: S3Store, faulty_s3: FaultyS3) -> None:
    stale = store.put("pointer", b"one")
    store.put("pointer", b"by somebody else")
    faulty_s3.add(Fault("drop_response", method="PUT"))
    with pytest.raises(Conflict):
        store.compare_and_swap("pointer", b"two", stale)
    assert store.get("pointer") == b"by somebody else"


def test_the_probe_finds_out_a_store_that_ignores_conditions(store: S3Store, faulty_s3: FaultyS3) -> None:
    faulty_s3.add(Fault("ignore_conditions", times=None))
    found = store.probe()
    assert (found.conditional_create, found.compare_and_swap) == (False, False)
    faulty_s3.clear()
    found = store.probe()
    assert (found.conditional_create, found.compare_and_swap) == (True, True)
    assert list(store.list()) == []


def test_the_probe_finds_out_a_store_that_rejects_conditions(store: S3Store, faulty_s3: FaultyS3) -> None:
    faulty_s3.add(Fault("status", method="PUT", status=501, code="NotImplemented", times=1))
    assert not store.probe().conditional_create


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (502, ""), (429, "TooManyRequests")]
)
def test_passing_failures_are_retried_and_counted(store: S3Store, faulty_s3: FaultyS3, status: int, code: str) -> None:
    store.put("x", b"data")
    for method, act in (("GET", lambda: store.get("x")), ("PUT", lambda: store.put("x", b"data"))):
        fault = faulty_s3.add(Fault("status", method=method, status=status, code=code, times=2))
        act()
        assert fault.seen == 2
    assert store.retry_counts() == {"get": 2, "put": 2}


def test_failures_that_do_not_pass_end_bounded(store: S3Store, faulty_s3: FaultyS3) -> None:
    fault = faulty_s3.add(Fault("status", status=503, code="SlowDown", times=None))
    for act in (lambda: store.get("x"), lambda: store.put_if_absent("x", b"y"), lambda: list(store.list())):
        fault.seen = 0
        with pytest.raises(StoreUnavailable, match="4 attempts") as caught:
            act()
        assert fault.seen == QUICK.attempts
        assert is_transient(caught.value)
        assert caught.value.hint


def test_a_torn_body_is_never_taken_for_the_whole(store: S3Store, faulty_s3: FaultyS3) -> None:
    data = bytes(range(256)) * 2000
    store.put("big", data)
    torn = faulty_s3.add(Fault("torn_body", method="GET", after_bytes=1000, times=2))
    assert store.get("big") == data
    assert torn.seen == 2
    faulty_s3.add(Fault("torn_body", method="GET", after_bytes=10, times=1))
    assert store.read_range("big", 256, 512) == data[:512]
    with store.open("big", block_bytes=65536) as file:
        faulty_s3.add(Fault("torn_body", method="GET", after_bytes=10, times=1))
        assert file.read() == data
    faulty_s3.add(Fault("torn_body", method="GET", after_bytes=10, times=None))
    with pytest.raises(StoreUnavailable):
        store.get("big")


def test_a_server_that_ignores_ranges_is_refused(store: S3Store, faulty_s3: FaultyS3) -> None:
    store.put("big", b"0123456789")
    faulty_s3.add(Fault("ignore_range", times=None))
    with pytest.raises(StoreError, match="ignores ranges"):
        store.read_range("big", 2, 3)


def test_a_server_that_ignores_if_match_on_reads_cannot_hide_a_change(store: S3Store, faulty_s3: FaultyS3) -> None:
    old = store.put("x", b"one")
    store.put("x", b"two")
    faulty_s3.add(Fault("ignore_conditions", times=None))
    with pytest.raises(ObjectChanged):
        store.get("x", etag=old)


def test_silence_times_out_and_is_retried(faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.s3_client, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setenv("AWS_VISIONMILL_TEST", "own client")  # clients are shared by environment
    store = S3Store(s3_bucket, policy=QUICK)
    store.put("x", b"data")
    slow = faulty_s3.add(Fault("delay", method="GET", delay_s=2.0, times=1))
    started = time.monotonic()
    assert store.get("x") == b"data"
    assert slow.seen == 1
    assert time.monotonic() - started >= 0.5
    assert store.retry_counts() == {"get": 1}


def test_nobody_listening_is_unavailable_and_names_the_setting(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable) as caught:
        S3Store(s3_bucket, policy=QUICK).get("x")
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_wrong_credentials_are_denied_at_once_and_stay_secret(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "wrong-secret-that-must-not-show"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = S3Store(s3_bucket, policy=QUICK)
    for act in (lambda: store.get("x"), lambda: store.put("x", b"y"), lambda: list(store.list()), store.probe):
        faulty_s3.requests.clear()
        with pytest.raises(AccessDenied) as caught:
            act()
        assert len(faulty_s3.requests) <= 2  # at most the request and the probe's clean-up: no retries
        shown = f"{caught.value!r} {caught.value} {caught.value.hint} {caught.value.__cause__!r}"
        assert secret not in shown


def test_no_credentials_at_all_says_which_variables_to_set(
    s3_server: S3Endpoint, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessDenied) as caught:
        S3Store(s3_bucket, policy=QUICK).get("x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_missing_bucket_is_named(s3_server: S3Endpoint) -> None:
    store = S3Store("s3://no-such-bucket/prefix", policy=QUICK)
    for act in (
        lambda: store.get("x"),
        lambda: store.put_if_absent("x", b"y"),
        lambda: list(store.list()),
        store.probe,
    ):
        with pytest.raises(BucketMissing, match="no-such-bucket"):
            act()


@pytest.mark.parametrize(
    ("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded"), (500, "XMinioStorageFull")]
)
def test_a_full_store_is_told_apart(store: S3Store, faulty_s3: FaultyS3, status: int, code: str) -> None:
    full = faulty_s3.add(Fault("status", method="PUT", status=status, code=code, times=None))
    with pytest.raises(NoSpaceLeft):
        store.put_if_absent("x", b"y")
    assert full.seen == 1


def test_an_object_that_vanishes_between_refusal_and_reading_back_is_a_conflict(
    store: S3Store, faulty_s3: FaultyS3
) -> None:
    store.put("x", b"theirs")
    faulty_s3.add(Fault("status", method="GET", status=404, code="NoSuchKey"))
    with pytest.raises(Conflict):
        store.put_if_absent("x", b"ours", token=b"ours")


class TestLargeFiles:
    """Uploads in parts, with the limits scaled down."""

    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infra.store_s3.MULTIPART_FROM_BYTES", 6 << 20)
        monkeypatch.setattr(infra.s3_multipart, "MIN_PART_BYTES", 5 << 20)

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "large.bin"
        path.write_bytes(bytes(range(256)) * (11 << 12) + b"attempt-7")
        return path

    def _unfinished(self, store: S3Store) -> list[object]:
        return list(store._client.call("list_multipart_uploads", store.uri, Bucket="tests").get("Uploads", ()))

    def test_a_file_in_parts_arrives_whole(self, store: S3Store, faulty_s3: FaultyS3, file: Path) -> None:
        assert store.put_file_if_absent("large", file, token=b"attempt-7")
        assert faulty_s3.count("PUT") == 3  # parts
        assert store.get("large") == file.read_bytes()

    def test_the_loser_takes_its_parts_away(self, store: S3Store, file: Path) -> None:
        store.put("large", b"somebody was first")
        assert not store.put_file_if_absent("large", file, token=b"attempt-7")
        assert store.get("large") == b"somebody was first"
        assert self._unfinished(store) == []

    def test_a_completion_whose_answer_was_lost_is_our_own(
        self, store: S3Store, faulty_s3: FaultyS3, file: Path
    ) -> None:
        for token in (b"attempt-7", None):
            store.delete("large")
            faulty_s3.clear()
            lost = faulty_s3.add(Fault("drop_response", method="POST", path="uploadId"))
            assert store.put_file_if_absent("large", file, token=token)
            assert lost.seen == 1
        assert self._unfinished(store) == []

    def test_a_failing_part_leaves_no_upload_behind(self, store: S3Store, faulty_s3: FaultyS3, file: Path) -> None:
        faulty_s3.add(Fault("status", method="PUT", path="partNumber=2", status=403, code="AccessDenied", times=None))
        with pytest.raises(AccessDenied):
            store.put_file_if_absent("large", file)
        assert self._unfinished(store) == []
        assert list(store.list()) == []

    def test_parts_survive_passing_failures(self, store: S3Store, faulty_s3: FaultyS3, file: Path) -> None:
        faulty_s3.add(Fault("status", method="PUT", path="partNumber=1", status=503, times=2))
        faulty_s3.add(Fault("drop_response", method="PUT", path="partNumber=2"))
        assert store.put_file_if_absent("large", file, token=b"attempt-7")
        assert store.get("large") == file.read_bytes()


def test_a_slow_upload_arrives(store: S3Store, faulty_s3: FaultyS3) -> None:
    faulty_s3.add(Fault("slow_upload", method="PUT", bytes_per_s=200_000))
    assert store.put_if_absent("x", b"z" * 100_000)
    assert store.info("x").size_bytes == 100_000


def test_many_threads_share_one_store(store: S3Store) -> None:
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for n in range(5):
                store.put(f"{worker}/{n}", f"{worker}-{n}".encode())
                assert store.get(f"{worker}/{n}") == f"{worker}-{n}".encode()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []
    assert len(list(store.list())) == 60


def test_a_store_that_came_through_fork_says_so(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forking a process with running threads is unsafe in a test run, so only the process number is changed here."""
    monkeypatch.setattr("infra.s3_client.os.getpid", lambda: -1)
    with pytest.raises(StoreError, match="fork"):
        store.get("x")


def test_a_child_that_was_forked_off_reads_with_a_connection_of_its_own(s3_server: S3Endpoint, s3_bucket: str) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from infra.store import open_store

        open_store(sys.argv[1]).put("x", b"data")
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a client that hangs for good ends here
            os._exit(0 if open_store(sys.argv[1]).get("x") == b"data" else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert subprocess.run([sys.executable, "-c", script, s3_bucket], timeout=60).returncode == 0


def test_keys_that_no_folder_could_hold_are_listed_as_they_are(store: S3Store, faulty_s3: FaultyS3) -> None:
    """SeaweedFS keeps a tree, so AWS's answer is put in its mouth; one odd key must not hide the others."""
    keys = ["a.jpg", "b//c.jpg", "d/", "e/../f.jpg", "/g.jpg", "h.jpg"]
    base = store.uri.removeprefix("s3://tests/")
    listed = "".join(
        f"<Contents><Key>{base}/{key}</Key><ETag>&quot;0&quot;</ETag><Size>1</Size></Contents>" for key in keys
    )
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode()
    faulty_s3.add(Fault("status", method="GET", path="list-type=2", status=200, body=body))
    assert [found.key for found in store.list()] == keys


def test_a_folder_marker_keeps_its_slash(store: S3Store) -> None:
    store.put("folder/", b"")
    store.put("folder/a.jpg", b"x")
    assert {found.key for found in store.list()} == {"folder/", "folder/a.jpg"}


def test_a_changed_environment_makes_a_new_connection(
    s3_server: S3Endpoint, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(s3_bucket)
    first.put("x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something else")
    with pytest.raises(AccessDenied):
        open_store(s3_bucket).get("x")
    monkeypatch.undo()
    assert open_store(s3_bucket).get("x") == b"1"
