"""One CSV file with a row per instance: for spreadsheets. Masks are left out, they are most of the bytes."""

from __future__ import annotations

from infra.store import Store
from tasks.output.views import Views
from tasks.report.export_files import write_rows

_ROWS = "SELECT * EXCLUDE (rle) FROM instances ORDER BY uri, frame, instance"


def write_csv(views: Views, store: Store, key: str) -> int:
    """Write the view ``instances`` but its masks, ordered by (uri, frame, instance); returns the number of rows."""
    return write_rows(views, store, key, _ROWS)
