"""One CSV file with a row per instance: for spreadsheets. Masks are left out, they are most of the bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.csv as pa_csv

from infra.store import Store
from tasks.output.views import Views
from tasks.products.segments.export_files import stream

_BATCH_ROWS = 20_000
_ROWS = "SELECT * EXCLUDE (rle) FROM instances ORDER BY uri, frame, instance"


def write_csv(views: Views, store: Store, key: str) -> int:
    """Write the view ``instances`` but its masks, in the order of (uri, frame, instance); returns the number of rows.

    UTF-8 with a line of names; text stands in quotes, what is unknown is empty.
    """
    rows = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-csv-") as folder:
        path = Path(folder) / "instances.csv"
        reader = stream(views, _ROWS, _BATCH_ROWS)
        with pa_csv.CSVWriter(path, reader.schema) as out:
            for batch in reader:
                out.write_batch(batch)
                rows += batch.num_rows
        store.put_file_if_absent(key, path)
    return rows
