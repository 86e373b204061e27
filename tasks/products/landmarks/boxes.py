"""Boxes of an earlier output, item by item, as workers ask for them."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from typing import Any

import numpy as np

from infra.errors import DatasetError
from infra.store import open_store
from modelkit import ClassInfo
from tasks.output.views import views_of
from tasks.report.classes import classes_of

_HELD_RANGES = 8  # shards' worth of rows; a worker goes through its items in about the order of the earlier plan
_ROWS = """
SELECT uri, etag, frame, status, labels, scores, boxes_xyxy FROM items WHERE uri >= ? AND uri <= ?
"""
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class EarlierBoxes:
    """The newest rows of one version of an output, read by ranges of neighbouring uris. Thread-safe.

    Args:
        output_uri: of the earlier job.
        version: fingerprint; rows of others are not looked at.

    Attributes:
        classes: that the version's model knows.
    """

    def __init__(self, output_uri: str, version: str) -> None:
        self._uri, self._lock = output_uri, threading.Lock()
        self._views = views_of(open_store(output_uri), version=version)
        ranges = self._views.connection.sql(
            "SELECT min(uri) AS first, max(uri) AS last FROM items GROUP BY shard_id ORDER BY first, last"
        ).fetchall()
        self._firsts = [first for first, _ in ranges]
        self._lasts = [last for _, last in ranges]
        self._held: OrderedDict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = OrderedDict()
        self.classes = tuple(ClassInfo(label, name) for label, name in classes_of(self._views).items())

    def of(self, uri: str, etag: str, frame: int) -> Found:
        """Boxes (n, 4), scores (n,) and labels (n,) that were found in an item.

        Raises:
            DatasetError: it was not looked at, with other content, or without a result.
        """
        row = self._row(uri, frame)
        if row is None:
            raise DatasetError(f"{self._uri} has no row of it, so nobody knows its boxes")
        if row["etag"] != etag:
            raise DatasetError(f"it has changed since its boxes were found for {self._uri}")
        if row["status"] != "ok":
            raise DatasetError(f"its boxes are not known: its row in {self._uri} is {row['status']}")
        return (
            np.array(row["boxes_xyxy"], np.float32).reshape(-1, 4),
            np.array(row["scores"], np.float32),
            np.array(row["labels"], np.int64),
        )

    def _row(self, uri: str, frame: int) -> dict[str, Any] | None:
        with self._lock:
            for rows in self._held.values():
                if (uri, frame) in rows:
                    return rows[uri, frame]
            bounds = self._range_of(uri)
            if bounds is None or bounds in self._held:
                return None
            found = self._views.connection.sql(_ROWS, params=list(bounds)).to_arrow_table().to_pylist()
            self._held[bounds] = {(row["uri"], row["frame"]): row for row in found}
            if len(self._held) > _HELD_RANGES:
                self._held.popitem(last=False)
            return self._held[bounds].get((uri, frame))

    def _range_of(self, uri: str) -> tuple[str, str] | None:
        """A range that has the uri, the one that begins last; rows are chosen by uri, so any such range holds them."""
        place = bisect_right(self._firsts, uri) - 1
        while place >= 0 and self._lasts[place] < uri:
            place -= 1
        return None if place < 0 else (self._firsts[place], self._lasts[place])
