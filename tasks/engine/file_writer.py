"""A worker's side of a product's files: the row of an item, then its files, and only later the part that names them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

from infra.errors import StoreError
from infra.store import Store
from tasks.engine.job import Assignment, JobSpec
from tasks.output.encoding import Row
from tasks.output.files import item_name, store_files
from tasks.output.layout import files_prefix
from tasks.product import Product
from tasks.records import ItemFailure


class FileWriter:
    """Writes the files of rows, from any thread; for products without files it has nothing to do."""

    def __init__(self, output: Store, job: JobSpec, product: Product) -> None:
        self._output, self._job, self._sink = output, job, product.sink
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def are_wanted(self) -> bool:
        """Whether the product has files."""
        return self._sink is not None

    def write(self, row: Row, assignment: Assignment) -> Row:
        """The row, which names its files now; a failed one if the product cannot make them. A probe writes none.

        Raises:
            StoreError: the output refuses.
        """
        assert self._sink is not None, "only products with files have a stage that writes them"
        shard = assignment.shard
        try:
            contents = self._sink.files(row.found)
            if assignment.kind == "probe":
                return row
            if not all(contents.values()):
                raise ValueError("a file of it is empty")
            prefix = files_prefix(self._job.version, shard.plan, shard.shard_id)
            attempt_id = assignment.attempt_id if self._job.driver_commits else None
            stored = store_files(self._output, prefix, item_name(row, attempt_id), contents)
            found = self._sink.stored(row.found, stored)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a product throws becomes the row of an item
            return replace(row, found=None, status="failed", failure=ItemFailure.of("encode", error))
        with self._lock:
            self._bytes[shard.shard_id] += sum(file.size_bytes for file in stored.values())
        return replace(row, found=found)

    def taken(self, shard_id: str) -> int:
        """Bytes of the files of a shard that is through."""
        with self._lock:
            return self._bytes.pop(shard_id, 0)
