from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import StoreError, UsageError, VisionmillError
from infra.store import open_store
from tasks.output.query import answer, run_query
from tasks.output.views import views_of
from tests.tasks.output.fake_output import FakeOutput, Item


def test_the_answer_is_an_arrow_table(filled: FakeOutput) -> None:
    table = run_query(filled.store.uri, "SELECT name, count(*) AS n FROM instances GROUP BY 1 ORDER BY 1")
    assert table.to_pylist() == [{"name": "box", "n": 16}, {"name": "disc", "n": 16}, {"name": "sky", "n": 16}]


READING = [
    "FROM items",
    "DESCRIBE items",
    "SUMMARIZE items",
    "SHOW TABLES",
    "EXPLAIN FROM items",
    "EXPLAIN ANALYZE SELECT count(*) FROM items",
    "WITH a AS (SELECT 1) FROM a",
]


@pytest.mark.parametrize("sql", READING)
def test_every_form_of_reading_is_allowed(filled: FakeOutput, sql: str) -> None:
    assert run_query(filled.store.uri, sql).num_rows > 0


@pytest.mark.parametrize("native", [True, False], ids=["duckdb reads", "store reads"])
@pytest.mark.parametrize(
    "sql",
    [
        "COPY items TO '{target}'",
        "COPY (SELECT 1) TO '{part}' (FORMAT parquet)",
        "EXPLAIN ANALYZE COPY (SELECT 1 AS x) TO '{part}' (FORMAT parquet)",
        "EXPLAIN /* */ ANALYZE COPY (SELECT 1 AS x) TO '{part}' (FORMAT parquet)",
        "EXPLAIN (FORMAT json) COPY (SELECT 1 AS x) TO '{part}' (FORMAT parquet)",
        "EXPORT DATABASE '{target}'",
        "ATTACH '{target}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW items",
        "SET enable_external_access = true",
        "PRAGMA enable_profiling",
        "SELECT 1; DROP VIEW items",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT * FROM filled",
    ],
)
def test_nothing_but_the_results_can_be_read_and_nothing_written(
    filled: FakeOutput, tmp_path: Path, sql: str, native: bool
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("top,secret\n1,2\n")
    part = next(info.key for info in filled.store.list("segments/"))
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    views = views_of(filled.store, native=native)
    place = filled.store.uri_of(part) if native else f"store://{part}"
    with pytest.raises(VisionmillError) as caught:
        answer(views, sql.format(target=tmp_path / "t.csv", part=place, secret=secret, folder=tmp_path))
    assert "top" not in caught.value.message
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nope FROM items", "SELECT * FROM nope", "SELECT mask_area(3)", ""])
def test_a_mistake_gives_one_message_that_names_views_and_columns(filled: FakeOutput, sql: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_query(filled.store.uri, sql)
    assert "Traceback" not in caught.value.message
    if sql:
        for name in [
            "items",
            "instances",
            "failures",
            "all_items",
            "boxes_xyxy",
            "mask_iou(rle_a, rle_b, height, width)",
        ]:
            assert name in caught.value.hint


@pytest.mark.parametrize("native", [True, False], ids=["duckdb reads", "store reads"])
def test_a_part_that_vanished_is_a_store_error(filled: FakeOutput, native: bool) -> None:
    views = views_of(filled.store, native=native)
    for info in list(filled.store.list("segments/")):
        filled.store.delete(info.key)
    with pytest.raises(StoreError) as caught:
        answer(views, "SELECT * FROM items")
    assert "Traceback" not in caught.value.message


def test_a_question_to_an_empty_output_has_an_empty_answer(output: FakeOutput) -> None:
    output.commit([Item("a.jpg")], leave_open=1)
    assert run_query(output.store.uri, "SELECT uri, name, score FROM instances").num_rows == 0


def test_a_place_that_is_no_output_is_refused(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put("depths/rubbish.txt", b"nothing of ours")
    with pytest.raises(UsageError, match="holds no results of a job"):
        run_query(str(tmp_path), "SELECT 1")


def test_a_product_that_is_not_there_is_refused_by_name(filled: FakeOutput) -> None:
    with pytest.raises(UsageError, match="there is no product 'depths'"):
        run_query(filled.store.uri, "SELECT 1", product="depths")
    part = next(info.key for info in filled.store.list("segments/"))
    filled.store.put(part.replace("segments/", "others/"), filled.store.get(part))
    assert run_query(filled.store.uri, "SELECT count(*) AS n FROM items")["n"].to_pylist() == [17]
