"""Arrow arrays of what was found in the items of a part: a list per item with an entry per thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def list_array(lengths: Sequence[int | None], values: pa.Array) -> pa.Array:
    """Lists of the given lengths over ``values``; None is a null list."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum([length or 0 for length in lengths], out=offsets[1:])
    mask = pa.array([length is None for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def rows_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """An array (n, m) as n lists of m values."""
    n, m = values.shape
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * m, pa.array(values.reshape(-1), kind))


def boxes_array(parts: Sequence[np.ndarray]) -> pa.Array:
    """Boxes (n, 4) of several items, one after the other, as lists of four."""
    return rows_array(np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 4), np.float32), pa.float32())
