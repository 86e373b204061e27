"""The lease: held by one, renewed, released, taken over from the dead, never from the living."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from infra.errors import LeaseHeld
from infra.store import open_store
from infra.telling import listening
from tasks.output.layout import LEASE_KEY
from tasks.output.lease import Holder, hold_lease, read_lease, refuse_if_held

ELSEWHERE = Holder("run-b", "another-host", 4242, 0.0, "2026-01-01T00:00:00+00:00", 1.0, 0, "token-b")


def test_lease_is_released_at_the_end_and_can_be_taken_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for run in ("one", "two"):
        with hold_lease(store, run):
            held = read_lease(store)
            assert held is not None and held[0].run_id == run and not held[0].released
        after = read_lease(store)
        assert after is not None and after[0].released


def test_living_holder_on_this_machine_refuses_at_once_and_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold_lease(store, "first"):
        started = time.monotonic()
        with pytest.raises(LeaseHeld, match=r"run first on .* \(pid"):
            with hold_lease(store, "second"):
                pass
        assert time.monotonic() - started < 2


def test_lease_of_a_dead_process_on_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold_lease(store, "living") as held:
        dead = dataclasses.replace(held.holder, run_id="dead", process_started=1.0, time_to_live_s=3600)
    store.put(LEASE_KEY, dead.encode())
    with hold_lease(store, "next") as taken:
        assert taken.holder.run_id == "next"


def test_silent_holder_elsewhere_is_taken_over_after_its_time_to_live(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(LEASE_KEY, ELSEWHERE.encode())
    waited: list[Holder] = []
    started = time.monotonic()
    with hold_lease(store, "next", on_wait=waited.append):
        assert 1.0 <= time.monotonic() - started < 5
    assert [h.run_id for h in waited] == ["run-b"]


def test_the_watch_over_a_holder_elsewhere_begins_with_the_command_s_first_look_and_is_told(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(LEASE_KEY, dataclasses.replace(ELSEWHERE, time_to_live_s=2.0).encode())
    words: list[str] = []
    refuse_if_held(store)
    time.sleep(1.5)
    started = time.monotonic()
    with listening(lambda word: words.append(f"{word.doing}: {word.detail}")), hold_lease(store, "next"):
        assert time.monotonic() - started < 1.5
    assert any("another-host" in word for word in words)
    store.put(LEASE_KEY, ELSEWHERE.encode())
    refuse_if_held(store)
    store.put(LEASE_KEY, ELSEWHERE.encode(renewals=1))
    with pytest.raises(LeaseHeld, match="another-host"):  # it was renewed since the look
        with hold_lease(store, "next"):
            pass


def test_renewing_holder_elsewhere_refuses(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(LEASE_KEY, ELSEWHERE.encode())
    stop = threading.Event()

    def renew() -> None:
        count = 0
        while not stop.wait(0.3):
            count += 1
            store.put(LEASE_KEY, ELSEWHERE.encode(renewals=count))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="another-host"):
            with hold_lease(store, "next"):
                pass
    finally:
        stop.set()
        thread.join()


def test_holder_notices_that_it_lost_the_lease_and_does_not_release_the_other_ones(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold_lease(store, "slow", time_to_live_s=0.3) as mine:
        store.put(LEASE_KEY, ELSEWHERE.encode())
        assert mine.lost.wait(5)
    held = read_lease(store)
    assert held is not None and held[0].run_id == "run-b" and not held[0].released


def test_renewal_changes_the_etag(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold_lease(store, "renewing", time_to_live_s=0.3):
        first = read_lease(store)
        time.sleep(0.5)
        second = read_lease(store)
    assert first is not None and second is not None and first[1] != second[1]


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    outcomes: list[str] = []
    barrier = threading.Barrier(6)
    release = threading.Event()

    def come(name: str) -> None:
        barrier.wait()
        try:
            with hold_lease(store, name):
                outcomes.append("held")
                release.wait(20)
        except LeaseHeld:
            outcomes.append("refused")
            if outcomes.count("refused") == 5:
                release.set()

    threads = [threading.Thread(target=come, args=(f"run-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["refused"] * 5


def test_unreadable_lease_is_taken(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(LEASE_KEY, b"not json")
    with hold_lease(store, "next"):
        held = read_lease(store)
        assert held is not None and held[0].run_id == "next"
