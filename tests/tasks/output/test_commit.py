"""The traps of committing to object stores, each sprung for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.errors import StoreError
from infra.store import Store, open_store
from tasks.output import encoding
from tasks.output.commit import DriverCommitter, commit_shard
from tasks.output.encoding import read_facts
from tasks.output.layout import part_key, parts_prefix, version_to_json
from tests.faults import Fault, FaultyS3
from tests.tasks.output.parts import VERSION, a_part

KEY = part_key(VERSION, "aa11")


def committed_attempt(store: Store, shard_id: str = "aa11") -> str:
    return read_facts(store.get(part_key(VERSION, shard_id)))[0].attempt_id


def test_the_first_commit_stands_and_a_twin_changes_nothing(store_uri: str) -> None:
    store = open_store(store_uri)
    first, first_id = a_part()
    second, second_id = a_part()
    assert commit_shard(store, VERSION, "aa11", first, first_id) == "committed"
    assert commit_shard(store, VERSION, "aa11", second, second_id) == "already_committed"
    assert store.get(KEY) == first
    assert [info.key for info in store.list(parts_prefix(VERSION))] == [KEY]


def test_of_two_racers_exactly_one_wins_fifty_times(store_uri: str) -> None:
    stores = [open_store(store_uri), open_store(store_uri)]
    stores[0].put("warm", b"up")
    with ThreadPoolExecutor(2) as pool:
        for i in range(50):
            shard_id = f"shard{i:02d}"
            parts = [a_part(shard_id), a_part(shard_id)]
            start = threading.Barrier(2)

            def race(n: int, shard_id: str = shard_id, parts: list = parts, start: threading.Barrier = start) -> str:
                start.wait()
                return commit_shard(stores[n], VERSION, shard_id, *parts[n])

            outcomes = list(pool.map(race, range(2)))
            assert sorted(outcomes) == ["already_committed", "committed"]
            assert committed_attempt(stores[0], shard_id) == parts[outcomes.index("committed")][1]


def test_a_zombies_late_write_loses(store_uri: str, tmp_path: Path) -> None:
    """A process is stopped between encoding and commit; its twin commits; the zombie comes back."""
    store = open_store(store_uri)
    store.put("warm", b"up")
    code = (
        "import json, os, pathlib, signal, sys\n"
        "from infra.store import open_store\n"
        "from tasks.output.commit import commit_shard\n"
        "from tasks.output.layout import version_from_json\n"
        "store, data = open_store(sys.argv[1]), pathlib.Path(sys.argv[2]).read_bytes()\n"
        "version = version_from_json(json.loads(sys.argv[4]))\n"
        "print('ready', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "print(commit_shard(store, version, 'aa11', data, sys.argv[3]), flush=True)\n"
    )
    late, late_id = a_part()
    (tmp_path / "late").write_bytes(late)
    arguments = [store_uri, str(tmp_path / "late"), late_id, json.dumps(version_to_json(VERSION))]
    zombie = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "ready\n"
        _wait_until_stopped(zombie.pid)
        data, attempt_id = a_part()
        assert commit_shard(store, VERSION, "aa11", data, attempt_id) == "committed"
        os.kill(zombie.pid, signal.SIGCONT)
        assert zombie.stdout.readline() == "already_committed\n"
        assert zombie.wait(30) == 0
    finally:
        if zombie.poll() is None:
            zombie.kill()
            zombie.wait()
    assert committed_attempt(store) == attempt_id


def _wait_until_stopped(pid: int) -> None:
    for _ in range(500):
        done, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if done == pid:
            assert os.WIFSTOPPED(status)
            return
        time.sleep(0.01)
    pytest.fail("the process did not stop")


@pytest.mark.s3
def test_a_refusal_that_answers_our_own_success_is_a_success(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    """The PUT happened, its answer was lost, the repeated PUT gets 412."""
    store = open_store(s3_bucket)
    data, attempt_id = a_part()
    fault = faulty_s3.add(Fault("drop_response", method="PUT", path="part-aa11"))
    assert commit_shard(store, VERSION, "aa11", data, attempt_id) == "committed"
    assert fault.seen == 1
    assert faulty_s3.count("PUT", "part-aa11") == 2
    assert store.get(KEY) == data


@pytest.mark.s3
def test_a_lost_answer_to_a_refused_commit_is_still_a_loss(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    twin, twin_id = a_part()
    commit_shard(store, VERSION, "aa11", twin, twin_id)
    faulty_s3.add(Fault("drop_response", method="PUT", path="part-aa11"))
    assert commit_shard(store, VERSION, "aa11", *a_part()) == "already_committed"
    assert committed_attempt(store) == twin_id


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code"), [(409, "ConditionalRequestConflict"), (503, "SlowDown"), (500, "InternalError")]
)
def test_answers_that_decide_nothing_are_asked_again(
    faulty_s3: FaultyS3, s3_bucket: str, status: int, code: str
) -> None:
    store = open_store(s3_bucket)
    data, attempt_id = a_part()
    fault = faulty_s3.add(Fault("status", method="PUT", path="part-aa11", status=status, code=code, times=2))
    assert commit_shard(store, VERSION, "aa11", data, attempt_id) == "committed"
    assert fault.seen == 2
    assert store.get(KEY) == data


@pytest.mark.s3
def test_a_request_that_never_arrived_is_repeated(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    data, attempt_id = a_part()
    faulty_s3.add(Fault("drop_request", method="PUT", path="part-aa11"))
    assert commit_shard(store, VERSION, "aa11", data, attempt_id) == "committed"
    assert committed_attempt(store) == attempt_id


@pytest.mark.s3
def test_a_store_that_stays_away_raises_and_holds_nothing(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("VISIONMILL_STORE_FIRST_DELAY_S", "0.01")
    store = open_store(s3_bucket)
    faulty_s3.add(Fault("status", method="PUT", path="part-aa11", times=None))
    with pytest.raises(StoreError, match="part-aa11"):
        commit_shard(store, VERSION, "aa11", *a_part())
    faulty_s3.clear()
    assert list(store.list(parts_prefix(VERSION))) == []


@pytest.mark.s3
def test_a_store_that_ignores_conditions_is_found_out_and_the_driver_commits(
    faulty_s3: FaultyS3, s3_bucket: str
) -> None:
    faulty_s3.add(Fault("ignore_conditions", times=None))
    store = open_store(s3_bucket)
    assert not store.probe().conditional_create
    first, first_id = a_part()
    second, second_id = a_part()
    # The trap: two conditional creates, and the second replaces the first.
    assert commit_shard(store, VERSION, "bb22", *a_part("bb22")) == "committed"
    twin, twin_id = a_part("bb22")
    commit_shard(store, VERSION, "bb22", twin, twin_id)
    assert committed_attempt(store, "bb22") == twin_id
    # The way out: one process that looks before it writes.
    driver = DriverCommitter(store)
    assert driver.commit(VERSION, "aa11", first, first_id) == "committed"
    assert driver.commit(VERSION, "aa11", second, second_id) == "already_committed"
    assert store.get(KEY) == first


def test_a_driver_that_commits_alone_lets_one_of_its_threads_win(store_uri: str) -> None:
    store = open_store(store_uri)
    store.put("warm", b"up")
    driver = DriverCommitter(store)
    for i in range(5):
        shard_id = f"shard{i}"
        parts = [a_part(shard_id) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda part, shard=shard_id: driver.commit(VERSION, shard, *part), parts))
        assert sorted(outcomes) == ["already_committed"] * 3 + ["committed"]
        assert committed_attempt(store, shard_id) == parts[outcomes.index("committed")][1]


def test_probes_of_honest_stores_need_no_driver(store_uri: str) -> None:
    store = open_store(store_uri)
    store.put("warm", b"up")
    assert store.probe().conditional_create


@pytest.mark.parametrize("committer", ["shared", "driver"])
def test_what_is_no_whole_part_of_this_attempt_is_never_sent(store_uri: str, committer: str) -> None:
    store = open_store(store_uri)
    store.put("warm", b"up")
    data, attempt_id = a_part()

    def commit(data: bytes, attempt_id: str) -> None:
        if committer == "shared":
            commit_shard(store, VERSION, "aa11", data, attempt_id)
        else:
            DriverCommitter(store).commit(VERSION, "aa11", data, attempt_id)

    for torn in (b"", data[:-1], data[: len(data) // 2], data[1:]):
        with pytest.raises(ValueError, match="not a whole Parquet object"):
            commit(torn, attempt_id)
    with pytest.raises(ValueError, match="stand once in the part"):
        commit(data, uuid.uuid4().hex)
    with pytest.raises(ValueError, match="16 characters"):
        commit(data, "PAR1")
    assert list(store.list(parts_prefix(VERSION))) == []


def test_an_empty_create_is_refused_by_the_store_too(store_uri: str) -> None:
    store = open_store(store_uri)
    store.put("warm", b"up")
    with pytest.raises(StoreError, match="without content"):
        store.put_if_absent(KEY, b"")
    assert list(store.list(parts_prefix(VERSION))) == []


@pytest.mark.parametrize("breaking", ["rows_to_table", "check_part", "write_table"])
def test_an_exception_while_encoding_publishes_nothing(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, breaking: str
) -> None:
    """Writers that close while an exception passes publish a truncated, readable file; ours never meets the store."""
    store = open_store(store_uri)
    store.put("warm", b"up")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    if breaking == "write_table":
        real = pq.ParquetWriter.write_table

        def half(self: pq.ParquetWriter, table: object, **options: object) -> None:
            real(self, table.slice(0, 2), **options)  # type: ignore[attr-defined]
            broken()

        monkeypatch.setattr(pq.ParquetWriter, "write_table", half)
    else:
        monkeypatch.setattr(encoding, breaking, broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        commit_shard(store, VERSION, "aa11", *a_part())
    assert list(store.list(parts_prefix(VERSION))) == []


def test_rows_are_many_so_none_has_a_dict_of_its_own() -> None:
    assert encoding.Row.__slots__
