"""A store that is gone for a while is waited for; one object that cannot be read is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

import infra.s3_client
from infra.errors import AccessDenied, ObjectGone, StoreOutage, StoreUnavailable, is_transient
from infra.outage import Outage, Patience
from infra.retry import RetryPolicy
from infra.seaweedfs import S3Endpoint
from infra.store_s3 import S3Store
from tests.faults import Fault, FaultyS3

pytestmark = pytest.mark.s3
QUICK = RetryPolicy(attempts=2, first_delay_s=0.01, max_delay_s=0.05)
OUTAGES = [
    Fault("status", status=503, code="SlowDown", times=None),
    Fault("status", status=500, code="InternalError", times=None),
    Fault("drop_request", times=None),
    Fault("drop_response", times=None),
    Fault("delay", delay_s=1.0, times=None),
]


class Told:
    """What somebody who shows progress would see."""

    def __init__(self) -> None:
        self.all: list[Outage | None] = []

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, told=self.all.append, tell_after_s=0.0)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(autouse=True)
def _short_time_outs(s3_server: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    S3Store("s3://tests/warm").put("x", b"the first write of a fresh server takes longer than the time-out below")
    monkeypatch.setattr(infra.s3_client, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setenv("AWS_VISIONMILL_TEST", "own client")  # clients are shared by environment


@pytest.fixture
def store(faulty_s3: FaultyS3, s3_bucket: str, told: Told) -> S3Store:
    return S3Store(s3_bucket, policy=QUICK, patience=told.patience(60.0))


def during(faulty_s3: FaultyS3, fault: Fault, act: Callable[[], object], seconds: float = 0.6) -> object:
    """``act`` while ``fault`` lasts for some time; what it returned."""
    faulty_s3.add(fault)
    end = threading.Timer(seconds, faulty_s3.clear)
    end.start()
    try:
        return act()
    finally:
        end.join()
        fault.seen = 0


@pytest.fixture(params=OUTAGES, ids=lambda fault: f"{fault.kind}{fault.status if fault.kind == 'status' else ''}")
def fault(request: pytest.FixtureRequest) -> Fault:
    return request.param


def test_a_read_waits_until_the_store_is_back(store: S3Store, faulty_s3: FaultyS3, told: Told, fault: Fault) -> None:
    store.put("x", b"data")
    assert store.get("x") == b"data"
    assert told.all == []
    started = datetime.now(UTC)
    assert during(faulty_s3, fault, lambda: store.get("x")) == b"data"
    *outages, end = told.all
    assert end is None
    assert len({outage.since for outage in outages if outage is not None}) == 1
    first = outages[0]
    assert first is not None
    assert abs(first.since - started) < timedelta(seconds=5)
    assert f"{store.uri} does not answer since" in str(first)


def test_a_create_waits_and_is_known_again_by_its_content(store: S3Store, faulty_s3: FaultyS3, fault: Fault) -> None:
    """``drop_response``: the first attempt created it, and every later one is refused by that success."""
    assert during(faulty_s3, fault, lambda: store.put_if_absent("part", b"rows"))
    assert not store.put_if_absent("part", b"other rows")
    assert store.get("part") == b"rows"


def test_a_listing_waits_too(store: S3Store, faulty_s3: FaultyS3) -> None:
    store.put("a", b"1")
    found = during(faulty_s3, OUTAGES[0], lambda: [found.key for found in store.list()])
    assert found == ["a"]


@pytest.mark.parametrize("fault", OUTAGES[1:3], ids=["answered with 500", "connections break"])
def test_after_the_patience_the_store_is_to_blame_and_no_object(
    faulty_s3: FaultyS3, s3_bucket: str, told: Told, fault: Fault
) -> None:
    store = S3Store(s3_bucket, policy=QUICK, patience=told.patience(0.3))
    store.put("x", b"data")
    assert store.get("x") == b"data"
    faulty_s3.add(fault)
    for act in (lambda: store.get("x"), lambda: store.info("x"), lambda: store.put("y", b"rows")):
        with pytest.raises(StoreOutage, match=r"has not answered for 0.\d minutes") as caught:
            act()
        assert not is_transient(caught.value)  # nobody further up begins again
        assert "same command" in caught.value.hint
    assert None not in told.all
    fault.seen = 0


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid:9"])
def test_nobody_listening_and_no_such_host_are_outages(
    s3_bucket: str, told: Told, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = S3Store(s3_bucket, policy=QUICK, patience=told.patience(0.3))
    for act in (lambda: store.get("x"), lambda: store.put_if_absent("x", b"rows"), lambda: list(store.list())):
        with pytest.raises(StoreOutage):
            act()
    assert told.all


def test_one_object_that_cannot_be_read_holds_nobody(store: S3Store, faulty_s3: FaultyS3, told: Told) -> None:
    store.put("good", b"data")
    store.put("bad", b"data")
    assert store.get("good") == b"data"
    faulty_s3.add(Fault("status", path="/bad", status=500, code="InternalError", times=None))
    started = time.monotonic()
    for act in (lambda: store.get("bad"), lambda: store.info("bad"), lambda: store.read_range("bad", 0, 2)):
        with pytest.raises(StoreUnavailable):
            act()
    assert time.monotonic() - started < 5.0  # the patience is a minute
    assert told.all[-1] is None


def test_a_store_that_comes_back_while_it_is_asked_blames_no_object(store: S3Store, faulty_s3: FaultyS3) -> None:
    """Others are served again a moment before this object is: it gets another chance."""
    store.put("good", b"data")
    store.put("late", b"data")
    assert store.get("good") == b"data"
    faulty_s3.add(Fault("status", path="/late", status=500, code="InternalError", times=QUICK.attempts + 1))
    assert store.get("late") == b"data"


def test_refusals_are_answers_and_are_not_waited_for(store: S3Store, faulty_s3: FaultyS3, told: Told) -> None:
    with pytest.raises(ObjectGone):
        store.get("absent")
    faulty_s3.add(Fault("status", method="GET", status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied):
        store.get("absent")
    assert told.all == []


def test_many_threads_wait_together_and_all_go_on(store: S3Store, faulty_s3: FaultyS3, told: Told) -> None:
    keys = [f"{n}" for n in range(8)]
    for key in keys:
        store.put(key, key.encode())
    with ThreadPoolExecutor(len(keys)) as pool:
        read = during(faulty_s3, OUTAGES[0], lambda: list(pool.map(store.get, keys)))
    assert read == [key.encode() for key in keys]
    assert told.all.count(None) >= 1
    assert told.all[-1] is None


def test_without_patience_a_request_ends_after_its_attempts(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    store = S3Store(s3_bucket, policy=QUICK)
    fault = faulty_s3.add(Fault("status", status=503, code="SlowDown", times=None))
    with pytest.raises(StoreUnavailable, match="2 attempts"):
        store.get("x")
    assert fault.seen == QUICK.attempts
