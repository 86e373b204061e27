"""One row per instance, a folder per class (``name=cat/part-00000.parquet``): what BI tools read without help.

Batches are dealt out to one buffer per class. When all buffers together hold too much, the largest is written as a
part; so memory is bounded whatever the number of classes and the order of rows, and every file is whole once it is
there (no writer stays open on a store).
"""

from __future__ import annotations

from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.store import Store
from tasks.output.views import Views
from tasks.report.export_files import stream

BUFFER_BYTES = 128 << 20
_BATCH_ROWS = 20_000
_ROW_GROUP_ROWS = 50_000


def write_flat(views: Views, store: Store, *, buffer_bytes: int = BUFFER_BYTES) -> tuple[int, int]:
    """Write all instances and return (instances, files).

    Columns are those of the view ``instances`` but ``name``, which stands in the folder's name as Hive wants it.
    """
    parts = _Parts(store)
    rows = 0
    for batch in stream(views, "SELECT * FROM instances", _BATCH_ROWS):
        rows += batch.num_rows
        for name in pc.unique(batch.column("name")).to_pylist():
            its = pc.is_null(batch.column("name")) if name is None else pc.equal(batch.column("name"), name)
            parts.add(name, batch.filter(its).drop_columns(["name"]))
        while parts.held_bytes > buffer_bytes:
            parts.write_largest()
    while parts.buffers:
        parts.write_largest()
    return rows, parts.files


class _Parts:
    """Buffers by class, and the parts that were written of each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.buffers: dict[str | None, list[pa.RecordBatch]] = {}
        self.sizes: dict[str | None, int] = {}
        self.numbers: dict[str | None, int] = {}
        self.files = 0

    @property
    def held_bytes(self) -> int:
        return sum(self.sizes.values())

    def add(self, name: str | None, batch: pa.RecordBatch) -> None:
        self.buffers.setdefault(name, []).append(batch)
        self.sizes[name] = self.sizes.get(name, 0) + batch.nbytes

    def write_largest(self) -> None:
        """Write the fullest buffer as the next part of its class."""
        name = max(self.buffers, key=lambda held: self.sizes[held])
        table = pa.Table.from_batches(self.buffers.pop(name))
        del self.sizes[name]
        number = self.numbers.get(name, 0)
        self.numbers[name] = number + 1
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=3, row_group_size=_ROW_GROUP_ROWS,
                       use_dictionary=["media", "model", "version", "etag", "uri"])  # fmt: skip
        self.store.put(f"name={_hive(name)}/part-{number:05d}.parquet", sink.getvalue().to_pybytes())
        self.files += 1


def _hive(name: str | None) -> str:
    """A value in a folder's name, as readers of Hive layouts take it apart again."""
    return "__HIVE_DEFAULT_PARTITION__" if not name else quote(name, safe=" ")
