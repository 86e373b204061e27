"""Masks on another canvas, and several masks as one, without drawing any of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelkit.rle.codec import compress_ragged, counts_from_edges, foreground_runs


def moved(
    rles: Sequence[bytes], size_hw: tuple[int, int], corner_yx: tuple[int, int], to_hw: tuple[int, int]
) -> list[bytes]:
    """Masks of one canvas laid on another one; what lies outside of that is cut off.

    Args:
        rles: n masks on a canvas of ``size_hw``.
        size_hw: its rows and columns.
        corner_yx: where its top-left corner comes to lie on the other canvas; negative cuts a window out of the masks.
        to_hw: rows and columns of the other canvas.

    Returns:
        n masks, some of them perhaps empty.
    """
    (height, _), (down, right), (rows, columns) = size_hw, corner_yx, to_hw
    part, start, end, _ = foreground_runs(rles)
    first = start // height
    pieces = (end - 1) // height - first + 1  # a run is cut where a column ends: its parts are no neighbours there
    run = np.repeat(np.arange(len(start)), pieces)
    column = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[run]
    top = np.clip(np.maximum(start[run] - column * height, 0) + down, 0, rows)
    bottom = np.clip(np.minimum(end[run] - column * height, height) + down, 0, rows)
    column = column + right
    seen = (column >= 0) & (column < columns) & (bottom > top)
    begin, stop = (column * rows + top)[seen], (column * rows + bottom)[seen]
    return _from_runs(part[run][seen], begin, stop, len(rles), rows * columns)


def union(rles: Sequence[bytes]) -> bytes:
    """One mask of the pixels of several, at least one, all of one canvas."""
    _, start, end, canvas = foreground_runs(rles)
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order]) if len(end) else end
    opens = np.append(True, start[1:] > reach[:-1])[: len(start)]
    closes = np.append(opens[1:], True)[: len(start)]
    begin, stop = start[opens], reach[closes]
    return _from_runs(np.zeros(len(begin), np.int64), begin, stop, 1, int(canvas[0]))[0]


def _from_runs(part: np.ndarray, start: np.ndarray, end: np.ndarray, n: int, area: int) -> list[bytes]:
    """Masks of the runs [start, end) of each part, in order; a run that begins where the one before ends goes on."""
    goes_on = np.zeros(len(start), bool)
    goes_on[1:] = (start[1:] == end[:-1]) & (part[1:] == part[:-1])
    ends_here = np.append(~goes_on[1:], True)[: len(start)]
    begins = ~goes_on
    edges = np.stack([start[begins], end[ends_here]], 1).reshape(-1)
    runs = np.bincount(part[begins], minlength=n)
    return compress_ragged(*counts_from_edges(edges, 2 * runs, area))
