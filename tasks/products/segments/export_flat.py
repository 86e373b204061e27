"""One row per instance, a folder per label (``label=3/part-00000.parquet``): what BI tools read without help.

Batches are dealt out to one buffer per label. When all buffers together hold too much, the largest is written as a
part; so memory is bounded whatever the number of labels and the order of rows, and every file is whole once it is
there (no writer stays open on a store).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.store import Store
from tasks.output.views import Views

BUFFER_BYTES = 128 << 20
_BATCH_ROWS = 20_000
_ROW_GROUP_ROWS = 50_000


def write_flat(views: Views, store: Store, *, buffer_bytes: int = BUFFER_BYTES) -> tuple[int, int]:
    """Write all instances and return (instances, files).

    Columns are those of the view ``instances`` but ``label``, which stands in the folder's name as Hive wants it.
    """
    parts = _Parts(store)
    rows = 0
    for batch in views.connection.sql("SELECT * FROM instances").to_arrow_reader(_BATCH_ROWS):
        rows += batch.num_rows
        for label in pc.unique(batch.column("label")).to_pylist():
            of_label = batch.filter(pc.equal(batch.column("label"), label)).drop_columns(["label"])
            parts.add(label, of_label)
        while parts.held_bytes > buffer_bytes:
            parts.write_largest()
    while parts.buffers:
        parts.write_largest()
    return rows, parts.files


class _Parts:
    """Buffers by label, and the parts that were written of each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.buffers: dict[int, list[pa.RecordBatch]] = {}
        self.sizes: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.files = 0

    @property
    def held_bytes(self) -> int:
        return sum(self.sizes.values())

    def add(self, label: int, batch: pa.RecordBatch) -> None:
        self.buffers.setdefault(label, []).append(batch)
        self.sizes[label] = self.sizes.get(label, 0) + batch.nbytes

    def write_largest(self) -> None:
        """Write the fullest buffer as the next part of its label."""
        label = max(self.buffers, key=lambda held: self.sizes[held])
        table = pa.Table.from_batches(self.buffers.pop(label))
        del self.sizes[label]
        number = self.numbers.get(label, 0)
        self.numbers[label] = number + 1
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=3, row_group_size=_ROW_GROUP_ROWS,
                       use_dictionary=["media", "name", "model", "version", "etag", "uri"])  # fmt: skip
        self.store.put(f"label={label}/part-{number:05d}.parquet", sink.getvalue().to_pybytes())
        self.files += 1
