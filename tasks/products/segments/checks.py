"""What must be true of every row of ``segments`` that has a result; ``visionmill verify --deep`` asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkit.rle.codec import RleError, counts_ragged
from tasks.products.segments.schema import QUALITIES

_LISTS = ("labels", "names", "scores", "boxes_xyxy", "areas", "rles", "is_thing", "track_ids")
_QUALITIES = tuple(field.name for field in QUALITIES)
_OPTIONAL_LISTS = ("rles", "track_ids", *_QUALITIES)  # null for models that have none


def check(found: pa.Table) -> Iterator[str]:
    """Parallel lists of equal length, scores in range, and masks that cover exactly their image.

    Args:
        found: rows with a result.
    """
    lists = [*_LISTS, *(name for name in _QUALITIES if name in found.column_names)]
    lengths = pc.list_value_length(found["labels"])
    for name in lists:
        own = pc.list_value_length(found[name])
        if name in _OPTIONAL_LISTS:
            own = pc.coalesce(own, lengths)
        for row in np.flatnonzero(~_equal(own, lengths)).tolist():
            yield f"{_where(found, row)}: {name} is not as long as labels"
    for name in ("scores", *lists[len(_LISTS) :]):
        column = found[name].combine_chunks()
        values, rows = pc.list_flatten(column).to_numpy(), pc.list_parent_indices(column).to_numpy()
        for row in np.unique(rows[~((values >= 0) & (values <= 1))]).tolist():
            yield f"{_where(found, row)}: {name} outside of [0, 1]"
    yield from _check_masks(found)


def _equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.equal(a, b), False).to_numpy().astype(bool)


def _check_masks(found: pa.Table) -> Iterator[str]:
    names = ("width", "height", "rles", "areas", "is_thing")
    columns = zip(*(found[name].to_pylist() for name in names), strict=True)
    for row, (width, height, rles, areas, is_thing) in enumerate(columns):
        if not rles:
            continue
        try:
            counts, lengths = counts_ragged(rles)
        except RleError as error:
            yield f"{_where(found, row)}: {error}"
            continue
        masks = np.split(counts, np.cumsum(lengths)[:-1])
        for instance, runs in enumerate(masks):
            if runs.sum() != width * height or (runs < 0).any():
                yield f"{_where(found, row)}, instance {instance}: mask of {runs.sum()} pixels on {width}x{height}"
            elif runs[1::2].sum() != areas[instance]:
                yield f"{_where(found, row)}, instance {instance}: area {areas[instance]}, mask {runs[1::2].sum()}"
        if not all(is_thing) and (shared := _shared_stuff(masks, is_thing, width * height)):
            yield f"{_where(found, row)}: {shared} pixels of stuff belong to another segment, too"


def _shared_stuff(masks: Sequence[np.ndarray], is_thing: Sequence[bool], num_pixels: int) -> int:
    """How many pixels of stuff are covered twice; the masks are run lengths, background first."""
    changes = np.zeros((2, num_pixels + 1), np.int32)  # of the cover by stuff, and by everything
    for runs, thing in zip(masks, is_thing, strict=True):
        bounds = np.cumsum(runs).clip(0, num_pixels)
        for change in changes[1:] if thing else changes:
            np.add.at(change, bounds[:-1:2], 1)
            np.add.at(change, bounds[1::2], -1)
    by_stuff, by_all = changes.cumsum(axis=1)
    return int(((by_stuff > 0) & (by_all > 1)).sum())


def _where(table: pa.Table, row: int) -> str:
    return f"row of {table['uri'][row].as_py()!r}, frame {table['frame'][row].as_py()}"
