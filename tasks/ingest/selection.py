"""What a new plan asks for: the inventory minus what is committed, or only what failed. Joins in DuckDB, on disk.

What is committed is read from the plans themselves: an entry is committed when its shard's part exists, because every
entry of a committed part has a row. That takes one LIST and the narrow plan files; the wide results are opened only for
their failures. Each item counts by its latest plan, so an object that changes back to an older state is planned again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.store import Store
from tasks.output.entries import BATCH_ROWS
from tasks.output.layout import part_key, plan_key
from tasks.records import Version

Selection = Literal["new", "failed", "all"]

PART_THREADS = 16
_COMMITTED = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("shard_id", pa.string()), ("plan", pa.int32())])
_FAILURES = pa.schema([("uri", pa.string()), ("shard_id", pa.string())])

_LATEST = "SELECT uri, arg_max(etag, plan) AS etag, max(plan) AS plan FROM committed GROUP BY uri"
_QUERIES: dict[Selection, str] = {
    "all": "SELECT i.* FROM inventory i",
    "new": f"SELECT i.* FROM inventory i ANTI JOIN ({_LATEST}) l ON i.uri = l.uri AND i.etag = l.etag",
    "failed": f"""
        SELECT i.* FROM inventory i SEMI JOIN (
            SELECT l.uri FROM ({_LATEST}) l
            SEMI JOIN (
                SELECT f.uri, s.plan
                FROM failures f JOIN (SELECT DISTINCT shard_id, plan FROM committed) s USING (shard_id)
            ) f ON l.uri = f.uri AND l.plan = f.plan
        ) wanted ON i.uri = wanted.uri
    """,
}


def select_items(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    version: Version,
    *,
    inventory: Path,
    plans: Iterable[int],
    committed_shards: set[str],
    selection: Selection,
    target: Path,
    limit: int | None = None,
) -> int:
    """Write the chosen lines of ``inventory`` to ``target`` (same columns, any order) and return how many they are.

    Args:
        connection: a workbench (:func:`tasks.ingest.spill.workbench`).
        plans: numbers of the plans of this version.
        committed_shards: ids of the shards whose part exists.
        selection: "new" leaves out what is committed with its current etag; "failed" takes the items of whose latest
            plan a row has another status than ok; "all" takes everything.
        limit: at most so many, the first by name.
    """
    # DuckDB takes no parameters in CREATE VIEW, so the path is quoted by doubling its quotes
    connection.execute(f"CREATE VIEW inventory AS SELECT * FROM read_parquet('{_quoted(inventory)}')")
    if selection != "all":
        connection.execute("CREATE TABLE committed (uri VARCHAR, etag VARCHAR, shard_id VARCHAR, plan INTEGER)")
        _load(connection, "committed", _committed_entries(store, version, plans, committed_shards))
    if selection == "failed":
        connection.execute("CREATE TABLE failures (uri VARCHAR, shard_id VARCHAR)")
        _load(connection, "failures", _failed_rows(store, version, committed_shards))
    first = "" if limit is None else f" ORDER BY uri LIMIT {int(limit)}"
    query = f"COPY ({_QUERIES[selection]}{first}) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd)"
    [(count,)] = connection.execute(query).fetchall()
    return int(count)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _load(connection: duckdb.DuckDBPyConnection, table: str, batches: Iterator[pa.RecordBatch]) -> None:
    """Batch by batch: a reader given to DuckDB whole would turn a store's error into one of DuckDB's own."""
    connection.begin()
    for batch in batches:
        connection.register("incoming", pa.Table.from_batches([batch]))
        connection.execute(f"INSERT INTO {table} SELECT * FROM incoming").fetchall()
        connection.unregister("incoming")
    connection.commit()


def _committed_entries(
    store: Store, version: Version, plans: Iterable[int], committed_shards: set[str]
) -> Iterator[pa.RecordBatch]:
    """(uri, etag, shard_id, plan) of every plan entry whose shard is committed."""
    shard_ids = pa.array(sorted(committed_shards), pa.string())
    for number in plans:
        with _opened(store, plan_key(version, number)) as stream:
            file = pq.ParquetFile(stream)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["uri", "etag", "shard_id", "plan"]):
                known = batch.select(_COMMITTED.names).cast(_COMMITTED)
                yield known.filter(pc.is_in(known["shard_id"], value_set=shard_ids))


@contextmanager
def _opened(store: Store, key: str) -> Iterator[BinaryIO]:
    """An object of ours; what is wrong inside it becomes a StoreError that names it."""
    try:
        with store.open(key) as stream:
            yield stream
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise StoreError(
            f"{store.uri_of(key)} is damaged: {error}",
            hint="Run visionmill verify; a part that is removed is made again by the next run.",
        ) from error


def _failed_rows(store: Store, version: Version, committed_shards: set[str]) -> Iterator[pa.RecordBatch]:
    """(uri, shard_id) of the rows whose status is not ok; a few parts at a time, most of them by their footer alone."""
    shard_ids = iter(sorted(committed_shards))
    with ThreadPoolExecutor(PART_THREADS, thread_name_prefix="failures") as pool:
        while chunk := list(islice(shard_ids, 8 * PART_THREADS)):
            for batches in pool.map(lambda shard_id: _failures_of(store, part_key(version, shard_id)), chunk):
                yield from batches


def _failures_of(store: Store, key: str) -> list[pa.RecordBatch]:
    with _opened(store, key) as stream:
        file = pq.ParquetFile(stream)
        groups = [i for i in range(file.num_row_groups) if not _all_ok(file.metadata.row_group(i))]
        table = file.read_row_groups(groups, columns=["uri", "shard_id", "status"]) if groups else None
    if table is None:
        return []
    failed = table.filter(pc.not_equal(pc.cast(table["status"], pa.string()), "ok")).select(_FAILURES.names)
    return failed.cast(_FAILURES).to_batches()


def _all_ok(group: pq.RowGroupMetaData) -> bool:
    """Whether statistics prove that a row group holds no failure."""
    column = next((c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "status"), None)
    statistics = column.statistics if column is not None else None
    return statistics is not None and statistics.has_min_max and statistics.min == statistics.max == "ok"
