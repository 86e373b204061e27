"""Kill drivers and workers between a file and the part that names it: no row lacks its file, no file is left over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import BucketMissing
from infra.store import Store, open_store
from tasks.output.layout import parse_part_key
from tasks.product import register, temporary_registrations
from tasks.report.verify import verify
from tests.chaos.test_kills import Driver, driver
from tests.tasks.engine.fakes import write_image, write_images
from tests.toys import copies

pytestmark = pytest.mark.chaos

ITEMS = 32  # in shards of eight


@pytest.fixture(autouse=True)
def product() -> Iterator[None]:
    with temporary_registrations():
        register(copies.PRODUCT)
        yield


def keys(store: Store, prefix: str) -> set[str]:
    try:
        return {info.key for info in store.list(prefix)}
    except BucketMissing:
        return set()


def shards_with_files_alone(store: Store) -> set[str]:
    """Shards of which files exist and no part: the moment in which a kill may leave something behind."""
    parts = {name.shard_id for key in keys(store, "copies/") if (name := parse_part_key(key)) is not None}
    return {key.split("/")[-2] for key in keys(store, "files/")} - parts


def wait_for_files_alone(one: Driver, store: Store, timeout_s: float = 200.0) -> set[str]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and one.process.poll() is None:
        if found := shards_with_files_alone(store):
            return found
        time.sleep(0.01)
    raise AssertionError(f"no file was seen before its part: {one.said()[-2000:]}")


def run_to_the_end(source: Path, output: str) -> None:
    with driver(source, output, "--files", "--ray", "none", "--delay-s", "0") as one:
        facts = one.end()
    assert facts.get("finished") or facts.get("nothing_to_do")


def assert_files_are_those_of_the_rows(store: Store, rows: int) -> None:
    report = verify(store.uri, deep=True)
    assert (report.problems, report.num_ok) == ((), rows)
    assert len(keys(store, "files/")) == rows


def test_a_driver_killed_between_file_and_part_leaves_no_row_without_its_file(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    write_images(tmp_path / "in", ITEMS)
    for _ in range(3):
        with driver(tmp_path / "in", store_uri, "--files", "--ray", "none", "--delay-s", "0.05") as one:
            wait_for_files_alone(one, store)
            os.kill(one.process.pid, signal.SIGKILL)
    assert shards_with_files_alone(store)
    left = keys(store, "files/")
    run_to_the_end(tmp_path / "in", store_uri)
    assert left <= keys(store, "files/"), "what was there is named by the rows that came later"
    assert_files_are_those_of_the_rows(store, ITEMS)


def test_a_file_whose_item_came_to_nothing_is_swept_by_the_next_run(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    write_images(tmp_path / "in", ITEMS)
    with driver(tmp_path / "in", store_uri, "--files", "--ray", "none", "--delay-s", "0.05") as one:
        wait_for_files_alone(one, store)
        os.kill(one.process.pid, signal.SIGKILL)
    orphans = {key for key in keys(store, "files/") if key.split("/")[-2] in shards_with_files_alone(store)}
    time.sleep(0.01)
    for index in range(ITEMS):  # other bytes under the same names: what the open plan asks for is gone
        write_image(tmp_path / "in", index, size_hw=(9, 9))
    run_to_the_end(tmp_path / "in", store_uri)
    assert orphans <= keys(store, "files/"), "attempts at an open plan might still name them"
    run_to_the_end(tmp_path / "in", store_uri)
    assert not orphans & keys(store, "files/")
    report = verify(store.uri, deep=True)
    assert report.problems == ()
    assert len(keys(store, "files/")) == report.num_ok


@pytest.mark.ray
def test_workers_killed_between_file_and_part_leave_no_row_without_its_file(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    write_images(tmp_path / "in", ITEMS)
    with driver(tmp_path / "in", store_uri, "--files", "--delay-s", "0.1") as one:
        wait_for_files_alone(one, store)
        workers = one.workers()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        facts = one.end()
    assert facts["finished"] and 0 < len(workers) <= facts["lost"]
    run_to_the_end(tmp_path / "in", store_uri)
    assert_files_are_those_of_the_rows(store, ITEMS)
