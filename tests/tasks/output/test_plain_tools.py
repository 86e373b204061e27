"""The promise to everybody else: a plain glob over the Parquet is right, whatever reads it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from infra.store import ObjectInfo
from tasks.output.schema import schema_named
from tasks.output.store_files import StoreFileSystem, open_parquet, path_of
from tests.tasks.output.fake_output import FakeOutput, Item


@pytest.fixture
def expected(filled: FakeOutput) -> dict[str, int]:
    """Counted part by part, without any of the tools' notion of a dataset."""
    tables = [open_parquet(filled.store, info.key).read() for info in filled.store.list("segments/")]
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        "rows": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "instances": sum(len(row["labels"] or ()) for row in rows),
        "area": sum(sum(row["areas"] or ()) for row in rows),
    }


def test_the_fixture_holds_what_it_says(expected: dict[str, int]) -> None:
    assert expected["rows"] == 17
    assert expected["failed"] == 1
    assert expected["instances"] == 48


def test_duckdb(filled: FakeOutput, expected: dict[str, int]) -> None:
    found = duckdb.sql(
        "SELECT count(*) AS rows, count(*) FILTER (status = 'failed') AS failed, sum(len(labels)) AS instances,"
        f" sum(list_sum(areas)) AS area FROM read_parquet('{filled.store.uri}/segments/**/*.parquet')"
    )
    assert dict(zip(found.columns, found.fetchall()[0], strict=True)) == expected


def test_polars(filled: FakeOutput, expected: dict[str, int]) -> None:
    frame = pl.scan_parquet(f"{filled.store.uri}/segments/**/*.parquet").collect()
    assert {
        "rows": frame.height,
        "failed": frame.filter(pl.col("status") == "failed").height,
        "instances": frame["labels"].list.len().sum(),
        "area": frame["areas"].list.sum().sum(),
    } == expected


def test_pandas(filled: FakeOutput, expected: dict[str, int]) -> None:
    frame = pd.concat([pd.read_parquet(path) for path in Path(filled.store.uri).glob("segments/**/*.parquet")])
    found = frame[frame.status == "ok"]
    assert {
        "rows": len(frame),
        "failed": int((frame.status == "failed").sum()),
        "instances": int(found.labels.map(len).sum()),
        "area": int(found.areas.map(sum).sum()),
    } == expected


def test_pyarrow_dataset(filled: FakeOutput, expected: dict[str, int]) -> None:
    dataset = ds.dataset(f"{filled.store.uri}/segments", format="parquet", partitioning="hive")
    table = dataset.to_table()
    assert {
        "rows": table.num_rows,
        "failed": dataset.count_rows(filter=ds.field("status") == "failed"),
        "instances": pc.sum(pc.list_value_length(table["labels"])).as_py(),
        "area": pc.sum(pc.list_flatten(table["areas"])).as_py(),
    } == expected


def test_every_part_has_the_frozen_schema(filled: FakeOutput) -> None:
    filled.commit([Item("only-failed.jpg", status="failed")])
    for info in filled.store.list("segments/"):
        assert open_parquet(filled.store, info.key).schema_arrow.equals(schema_named("segments", "segments.v1"))


def test_threads_that_share_a_handle_do_not_mix_up_their_positions(filled: FakeOutput) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = bytes(range(256)) * 64
    filled.store.put("blob", data)
    handle = StoreFileSystem(filled.store, [ObjectInfo("blob", len(data), "e")]).open(path_of("blob"), "rb")

    def seek_then_read(offset: int) -> bool:
        handle.seek(offset)
        return handle.read(100) == data[offset : offset + 100]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(seek_then_read, range(0, 4000)))
