"""Files beside rows: written before the part that names them, adopted by a second attempt, checked, swept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import StoreError
from infra.store import Store, open_store
from tasks.engine.job import Assignment
from tasks.engine.pool import run_serial
from tasks.engine.worker import Worker
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.output.files import sweep_files
from tasks.output.layout import files_prefix, make_version, part_key, swept_key
from tasks.product import register, temporary_registrations
from tasks.report.verify import verify
from tests.tasks.engine.fakes import job_for, shards_of, write_image, write_images
from tests.toys import copies


@pytest.fixture(autouse=True)
def product(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "out").mkdir()
    with temporary_registrations():
        register(copies.PRODUCT)
        yield


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Makes workers that are closed when the test ends."""
    made: list[Worker] = []

    def make(**options: Any) -> Worker:
        made.append(Worker(copying_job(tmp_path / "out", **options), own_process=False))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def copying_job(output: Path | str, **options: Any) -> Any:
    factory = {"version": copies.VERSION, "predictor_factory": "tests.toys.copies:make"}
    return job_for(output, **factory | options)


def rows_of(store: Store, shard_id: str) -> list[dict[str, Any]]:
    data = store.get(part_key(copies.VERSION, shard_id))
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def files_in(store: Store) -> set[str]:
    return {info.key for info in store.list("files/")}


def assign(shard: Any, attempt: str = "attempt-0001-of-shard", **options: Any) -> Assignment:
    return Assignment(shard, attempt_id=attempt, **options)


def test_every_row_names_its_file_and_the_file_holds_the_picture(workers: Any, tmp_path: Path) -> None:
    entries = write_images(tmp_path / "in", 5, {3: "raise in infer"})
    (shard,) = shards_of(entries, 5)
    outcome, store = workers().process(assign(shard)), open_store(str(tmp_path / "out"))
    rows = rows_of(store, shard.shard_id)
    assert [row["file_key"] is None for row in rows] == [False, False, False, True, False]
    named = [row for row in rows if row["file_key"]]
    assert {row["file_key"] for row in named} == files_in(store)
    assert all(row["file_key"].startswith(files_prefix(copies.VERSION, 1, shard.shard_id)) for row in named)
    for row in named:
        data = store.get(row["file_key"])
        assert (row["file_sha256"], row["file_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(Image.open(row["uri"])))
    part = store.info(part_key(copies.VERSION, shard.shard_id)).size_bytes
    assert outcome.receipt.bytes_out == part + sum(row["file_bytes"] for row in named)
    assert outcome.receipt.stage_seconds["store"] > 0


def test_a_second_attempt_names_what_the_first_one_wrote_whatever_it_computed(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 2), 2)
    other, store = open_store(str(tmp_path / "other")), open_store(str(tmp_path / "out"))
    workers(output_uri=other.uri).process(assign(shard))
    key = rows_of(other, shard.shard_id)[0]["file_key"]
    store.put(key, b"what another machine computed")
    workers().process(assign(shard, "attempt-0002-of-shard"))
    row = rows_of(store, shard.shard_id)[0]
    assert row["file_key"] == key, "the name follows from the item"
    assert store.get(key) == b"what another machine computed"
    assert row["file_sha256"] == hashlib.sha256(b"what another machine computed").hexdigest()


def test_where_only_the_driver_commits_attempts_do_not_overwrite_each_other(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 1), 1)
    worker = workers(driver_commits=True)
    for attempt in ("attempt-0001-of-shard", "attempt-0002-of-shard"):
        worker.process(assign(shard, attempt))
    assert len(files_in(open_store(str(tmp_path / "out")))) == 2


@pytest.mark.parametrize("files", [{"png": b""}, ZeroDivisionError("no file today")], ids=["empty", "raises"])
def test_a_picture_of_which_no_file_can_be_made_costs_its_own_row(
    workers: Any, tmp_path: Path, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(copy: copies.Copy) -> dict[str, bytes]:
        if copy.pixels is not None and copy.pixels[0, 0, 0] != 1:
            return copies.png(copy)
        if isinstance(files, Exception):
            raise files
        return files

    sink = replace(copies.PRODUCT.sink, files=of)
    with temporary_registrations():
        monkeypatch.setattr(copies, "PRODUCT", replace(copies.PRODUCT, name="others", verb="other", sink=sink))
        version = make_version("others", model="fake@0", model_digest="0" * 64, parameters={}, schema="copies.v1")
        (shard,) = shards_of(write_images(tmp_path / "in", 3), 3)
        receipt = workers(version=version).process(assign(shard)).receipt
        assert (receipt.ok, receipt.failed) == (2, 1)
        assert "is empty" in receipt.error_sample[0] or "no file today" in receipt.error_sample[0]


def test_a_probe_leaves_no_file(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 2), 2)
    assert workers().process(assign(shard, kind="probe")).receipt is None
    assert files_in(open_store(str(tmp_path / "out"))) == set()


def test_a_store_that_refuses_a_file_ends_the_shard_and_nothing_is_committed(workers: Any, tmp_path: Path) -> None:
    (shard,) = shards_of(write_images(tmp_path / "in", 2), 2)
    worker, store = workers(), open_store(str(tmp_path / "out"))
    store.put("files", b"in the way: a file where a folder must be")
    with pytest.raises(StoreError):
        worker.process(assign(shard))
    assert not list(store.list("copies/"))


def plan_of(source: Path, output: Path, shard_items: int = 2) -> Plan:
    inventory = take_inventory(str(source), folder=output.parent)
    plan = open_plan(open_store(str(output)), copies.VERSION, inventory, PlanOptions(shard_items=shard_items))
    assert plan is not None
    return plan


@pytest.fixture
def copied(tmp_path: Path) -> Store:
    """A closed plan of three shards, six pictures of which one failed."""
    write_images(tmp_path / "in", 6, {5: "raise in infer"})
    assert run_serial(plan_of(tmp_path / "in", tmp_path / "out"), copying_job(tmp_path / "out")).finished
    return open_store(str(tmp_path / "out"))


def test_a_whole_output_with_files_verifies(copied: Store) -> None:
    for deep in (False, True):
        report = verify(copied.uri, deep=deep)
        assert (report.problems, report.num_rows, report.num_failed) == ((), 6, 1)


def test_files_that_are_gone_short_or_changed_are_problems(copied: Store) -> None:
    gone, short, changed, *_ = sorted(files_in(copied))
    copied.delete(gone)
    copied.put(short, b"short")
    copied.put(changed, bytes(reversed(copied.get(changed))))
    quick, deep = ("\n".join(verify(copied.uri, deep=deep).problems) for deep in (False, True))
    for said in (quick, deep):
        assert f"{gone} is not there" in said and f"{short} has 5 bytes" in said
    assert f"{changed} has other bytes" in deep and changed not in quick


def test_what_no_row_names_is_swept_once_its_plan_is_closed_and_only_then(copied: Store, tmp_path: Path) -> None:
    named = files_in(copied)
    shard = sorted(named)[0].rpartition("/")[0]
    copied.put(f"{shard}/of-an-attempt-that-died.png", b"x")
    copied.put("files/copies/version=0123456789abcdef/000001/shard/of-another-version.png", b"x")
    copied.put(f"{files_prefix(copies.VERSION, 1)}unknown/of-nobody.png", b"x")
    write_image(tmp_path / "in", 6)
    plan = plan_of(tmp_path / "in", tmp_path / "out")
    (left,) = [one for one in plan.shards()]
    copied.put(f"{files_prefix(copies.VERSION, 2, left.shard_id)}of-an-attempt-under-way.png", b"x")
    before = files_in(copied)
    assert sweep_files(copied, copies.VERSION) == 1
    assert before - files_in(copied) == {f"{shard}/of-an-attempt-that-died.png"}
    assert copied.get(swept_key(copies.VERSION, 1))
    copied.put(f"{shard}/late.png", b"x")
    assert sweep_files(copied, copies.VERSION) == 0, "each plan is looked at once"
    assert run_serial(plan, copying_job(tmp_path / "out")).finished
    assert sweep_files(copied, copies.VERSION) == 1
    assert named < files_in(copied) and verify(copied.uri, deep=True).problems == ()


def test_nothing_is_swept_for_a_product_without_files(tmp_path: Path) -> None:
    version = replace(copies.VERSION, product="segments")
    assert sweep_files(open_store(str(tmp_path)), version) == 0
