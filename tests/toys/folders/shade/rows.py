"""The column, and how carriers become it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tasks.output.tables import column


def schemas() -> dict[str, list[pa.Field]]:
    """A number for each image, beside the common columns."""
    return {"shade.v1": [column("shade", pa.float32(), "mean of all pixels and channels", unit="[0, 1]")]}


def columns(found: Sequence[Any | None], class_names: Mapping[int, str]) -> dict[str, list[Any]]:
    """Null where an item failed."""
    return {"shade": [None if one is None else one.value for one in found]}
