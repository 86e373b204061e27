"""One CSV file with a row per keypoint: for spreadsheets and statistics."""

from __future__ import annotations

from infra.store import Store
from tasks.output.views import Views
from tasks.report.export_files import write_rows

_ROWS = "SELECT * FROM keypoints ORDER BY uri, frame, object, keypoint"


def write_csv(views: Views, store: Store, key: str) -> int:
    """Write the view ``keypoints``, in the order of (uri, frame, object, keypoint); returns the number of objects.

    x and y are those of the output, from the top-left corner of the image on; of an absent keypoint they are empty.
    """
    write_rows(views, store, key, _ROWS)
    [(objects,)] = views.connection.sql("SELECT count(*) FROM objects").fetchall()
    return int(objects)
