"""Functions on masks for SQL: ``mask_area``, ``mask_iou`` and ``mask_polygon``, one call per batch of rows.

| function | gives |
|---|---|
| ``mask_area(rle)`` | BIGINT: pixels of the mask |
| ``mask_iou(rle_a, rle_b, height, width)`` | DOUBLE: intersection over union of two masks of one image, in [0, 1] |
| ``mask_polygon(rle, height, width)`` | DOUBLE[][]: one ring per part as COCO writes it, ``[x0, y0, x1, y1, ...]`` |

``rle`` is a value of the column ``rles``: COCO's compressed run lengths. NULL in, NULL out. Polygons are
lists rather than text, so that Arrow, pandas and SQL get numbers; ``to_json(mask_polygon(...))`` is text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType
from duckdb.sqltypes import DuckDBPyType

from modelkit.rle import RleError, areas, ious, to_polygons
from modelkit.rle.codec import counts_ragged, starts_of

_POLYGON = pa.list_(pa.list_(pa.float64()))


def register_mask_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions known to a connection; they are vectorised over Arrow batches."""

    def register(name: str, function: Callable[..., pa.Array], parameters: list[str], gives: str) -> None:
        types: list[Any] = [DuckDBPyType(name) for name in parameters]
        connection.create_function(name, function, types, gives, type=PythonUDFType.ARROW)

    register("mask_area", _areas, ["BLOB"], "BIGINT")
    register("mask_iou", _ious, ["BLOB", "BLOB", "INTEGER", "INTEGER"], "DOUBLE")
    register("mask_polygon", _polygons, ["BLOB", "INTEGER", "INTEGER"], "DOUBLE[][]")


def _areas(rles: pa.ChunkedArray) -> pa.Array:
    return pa.array(areas(rles.to_pylist()), pa.int64())


def _ious(a: pa.ChunkedArray, b: pa.ChunkedArray, height: pa.ChunkedArray, width: pa.ChunkedArray) -> pa.Array:
    one, other = a.to_pylist(), b.to_pylist()
    found = ious(one, other)
    if one:
        counts, lengths = counts_ragged(one)
        canvas = np.add.reduceat(counts, starts_of(lengths))
        stated = height.to_numpy().astype(np.int64) * width.to_numpy()
        if (canvas != stated).any():
            row = int(np.flatnonzero(canvas != stated)[0])
            raise RleError(f"a mask of {canvas[row]} pixels cannot lie on an image of {stated[row]}")
    return pa.array(found, pa.float64())


def _polygons(rles: pa.ChunkedArray, height: pa.ChunkedArray, width: pa.ChunkedArray) -> pa.Array:
    pairs = zip(rles.to_pylist(), _sizes(height, width), strict=True)
    rings = [[ring.reshape(-1) for ring in to_polygons(counts, size_hw)] for counts, size_hw in pairs]
    return pa.array(rings, _POLYGON)


def _sizes(height: pa.ChunkedArray, width: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    return zip(height.to_pylist(), width.to_pylist(), strict=True)
