"""What forms of many files share: their names, their writing, and what comes of items whose source is gone."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from infra.errors import DatasetError
from infra.store import Store
from infra.telling import tell
from tasks.output.naming import common_root, relative_name, without_extension
from tasks.output.views import Views

_BATCH_ROWS = 500
_CSV_BATCH_ROWS = 20_000
_PUT_THREADS = 16


def stream(views: Views, sql: str, batch_rows: int) -> pa.RecordBatchReader:
    """The rows of a query in batches; how many of them were taken is told."""
    [(total,)] = views.connection.sql(f"SELECT count(*) FROM ({sql})").fetchall()
    reader = views.connection.sql(sql).to_arrow_reader(batch_rows)

    def told() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in reader:
            tell("exporting", done, total, "rows")
            yield batch
            done += batch.num_rows
        tell("exporting: the last files", done, total, "rows")

    return pa.RecordBatchReader.from_batches(reader.schema, told())


def batches(views: Views, sql: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a query, some hundreds at a time."""
    for batch in stream(views, sql, _BATCH_ROWS):
        yield batch.to_pylist()


def write_rows(views: Views, store: Store, key: str, sql: str) -> int:
    """Write the rows of a query as one CSV file; returns their number.

    UTF-8 with a line of names; text stands in quotes, what is unknown is empty.
    """
    rows = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-csv-") as folder:
        path = Path(folder) / "rows.csv"
        reader = stream(views, sql, _CSV_BATCH_ROWS)
        with pa_csv.CSVWriter(path, reader.schema) as out:
            for batch in reader:
                out.write_batch(batch)
                rows += batch.num_rows
        store.put_file_if_absent(key, path)
    return rows


class ItemNames:
    """Names of items without their extension; those of images that differ in it only keep it (``a.jpg``, ``a.png``)."""

    def __init__(self, views: Views) -> None:
        self._root = common_root(views)
        rows = views.connection.sql(
            r"SELECT stem FROM (SELECT DISTINCT uri, regexp_replace(uri, '\.[^./]*$', '') AS stem FROM items"
            " WHERE status = 'ok' AND media = 'image') GROUP BY stem HAVING count(*) > 1"
        ).fetchall()
        self._shared = {without_extension(relative_name(stem + ".x", self._root, "image", 0)) for (stem,) in rows}

    def of(self, row: dict[str, Any]) -> str:
        """``a/b`` for an image, ``a/clip.mp4/000012`` for a frame of a video."""
        name = relative_name(row["uri"], self._root, row["media"], row["frame"])
        stem = without_extension(name)
        return name if stem in self._shared else stem


class Puts:
    """Many small objects, a bounded number of them under way; the first failure ends the export."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.count = 0
        self._pool = ThreadPoolExecutor(_PUT_THREADS, thread_name_prefix="export")
        self._waiting: deque[Future[str]] = deque()

    def __enter__(self) -> Puts:
        return self

    def put(self, key: str, data: bytes) -> None:
        """Write an object some time before the block is left."""
        self.count += 1
        self._waiting.append(self._pool.submit(self.store.put, key, data))
        if len(self._waiting) > 8 * _PUT_THREADS:
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


class Missing:
    """Sources that could not be read again: all else is written first, then they are told."""

    def __init__(self, beside: str) -> None:
        self._beside, self._first, self._count = beside, "", 0

    def add(self, row: dict[str, Any], why: str) -> None:
        """Remember an item and the reason."""
        self._first = self._first or f"{row['uri']}: {why}"
        self._count += 1

    def tell(self) -> None:
        """Raises DatasetError if any is missing."""
        if self._count:
            raise DatasetError(
                f"{self._count} images could not be written{self._beside}, the first is {self._first}",
                hint="All else is there; bring the sources back and export to another place.",
            )
