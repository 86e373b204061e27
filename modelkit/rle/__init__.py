"""Masks as compressed COCO run lengths: made, measured, compared and drawn without pycocotools, many at once.

Everything equals ``pycocotools.mask`` byte for byte or number for number (the tests hold it against that). The parts:
:mod:`modelkit.rle.codec` (strings and counts), :mod:`modelkit.rle.polygons` (outlines) and :mod:`modelkit.rle.canvas`
(masks on another canvas), re-exported here as far as users need them, :mod:`modelkit.rle.boxes` (a detector's small
masks straight to run lengths) and :mod:`modelkit.rle.grids` (the same for masks on a grid over the image). Who only
reads masks, as queries and exports do, is spared the import of torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from modelkit.rle.canvas import moved, union
from modelkit.rle.codec import (
    RleError,
    areas,
    compress,
    compress_ragged,
    counts_from_edges,
    counts_of,
    foreground_runs,
    starts_of,
)
from modelkit.rle.polygons import outlines

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RleError",
    "area",
    "areas",
    "bbox",
    "bboxes",
    "compress",
    "counts_of",
    "decode",
    "encode",
    "encode_label_map",
    "iou",
    "ious",
    "moved",
    "to_polygons",
    "union",
]


def encode(mask: np.ndarray | Tensor) -> bytes:
    """Compressed run lengths of an (H, W) mask; nonzero is foreground. A tensor is searched on its own device."""
    starts, values = _runs(mask != 0)
    if len(values) and not values[0]:
        starts = starts[1:]  # the leading background opens no run of its own
    flat = counts_from_edges(starts, np.array([len(starts)]), mask.shape[0] * mask.shape[1])
    return compress_ragged(*flat)[0]


def encode_label_map(label_map: np.ndarray | Tensor, ignore: Collection[int] = ()) -> dict[int, bytes]:
    """Run lengths of every label's mask, found in one pass over the map.

    Args:
        label_map: (H, W) integers, array or tensor on any device.
        ignore: labels to leave out (255 of semantic maps, say).

    Returns:
        label -> compressed run lengths, in ascending order of the labels that occur.

    Raises:
        ValueError: when the map is not two-dimensional or not of integers.
    """
    if isinstance(label_map, np.ndarray):
        floating = label_map.dtype.kind not in "iub"
    else:
        floating = label_map.is_floating_point()
    if label_map.ndim != 2 or floating:
        raise ValueError(f"label_map must be (H, W) integers, got {tuple(label_map.shape)} of {label_map.dtype}")
    area_px = label_map.shape[0] * label_map.shape[1]
    starts, values = _runs(label_map)
    ends = np.append(starts[1:], area_px)[: len(starts)]
    keep = ~np.isin(values, list(ignore))
    order = np.argsort(values[keep], kind="stable")
    edges = np.stack([starts[keep][order], ends[keep][order]], axis=1).reshape(-1)
    labels, runs = np.unique(values[keep], return_counts=True)
    rles = compress_ragged(*counts_from_edges(edges, 2 * runs, area_px))
    return dict(zip(labels.tolist(), rles, strict=True))


def _runs(values: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Column-major runs of equal values on the host: (starts, value of each run).

    Neighbours are compared in the array's own (row-major) order and only the changes are sorted: no transposed copy.
    """
    height, width = values.shape
    if height * width == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not isinstance(values, np.ndarray):
        return _runs_on_device(values)
    row, column = np.divmod(np.flatnonzero(values[1:] != values[:-1]), width)
    top = np.flatnonzero(values[0, 1:] != values[-1, :-1]) + 1
    starts = np.concatenate([np.zeros(1, np.int64), column * height + row + 1, top * height])
    starts.sort()
    column, row = np.divmod(starts, height)
    return starts, values[row, column]


def _runs_on_device(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    import torch

    height = values.shape[0]
    row, column = torch.nonzero(values[1:] != values[:-1], as_tuple=True)
    top = torch.nonzero(values[0, 1:] != values[-1, :-1])[:, 0] + 1
    starts, _ = torch.sort(torch.cat([column * height + row + 1, top * height, top.new_zeros(1)]))
    found = values[starts % height, torch.div(starts, height, rounding_mode="floor")]
    return starts.cpu().numpy(), found.cpu().numpy()


def decode(rle: bytes, size_hw: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask (a column-major array, as pycocotools returns).

    Raises:
        RleError: when the run lengths do not sum to H * W.
    """
    counts = counts_of(rle)
    _check_canvas(counts, size_hw)
    foreground = np.arange(len(counts)) % 2 == 1
    return np.repeat(foreground, counts).reshape(size_hw[1], size_hw[0]).T


def _check_canvas(counts: np.ndarray, size_hw: tuple[int, int]) -> None:
    total = int(counts.sum())
    if total != size_hw[0] * size_hw[1] or (counts < 0).any():
        raise RleError(f"run lengths cover {total} pixels, the canvas {size_hw} has {size_hw[0] * size_hw[1]}")


def area(rle: bytes) -> int:
    """Foreground pixels of one mask."""
    return int(areas([rle])[0])


def bboxes(rles: Sequence[bytes], size_hw: tuple[int, int]) -> np.ndarray:
    """(n, 4) float64 boxes x0, y0, x1, y1 around n masks of one canvas; zeros for an empty mask.

    x1, y1 are exclusive (one past the last pixel), so that x1 - x0 is pycocotools' width.
    """
    height = size_hw[0]
    part, start, end, _ = foreground_runs(rles)
    x0, x1 = start // height, (end - 1) // height
    wraps = x0 != x1  # such a run touches the bottom of one column and the top of the next
    y0 = np.where(wraps, 0, start - x0 * height)
    y1 = np.where(wraps, height, end - x1 * height)
    boxes = np.zeros((len(rles), 4))
    present, first = np.unique(part, return_index=True)
    if len(present):
        for corner, (values, reduce) in enumerate(
            [(x0, np.minimum), (y0, np.minimum), (x1 + 1, np.maximum), (y1, np.maximum)]
        ):
            boxes[present, corner] = reduce.reduceat(values, first)
    return boxes


def bbox(rle: bytes, size_hw: tuple[int, int]) -> np.ndarray:
    """(4,) float64: x0, y0, x1, y1 around one mask, x1 and y1 exclusive; zeros for an empty mask."""
    return bboxes([rle], size_hw)[0]


def ious(a: Sequence[bytes], b: Sequence[bytes]) -> np.ndarray:
    """(n,) float64 intersection over union of n pairs of masks; 0 where both are empty.

    Raises:
        ValueError: when a and b differ in length.
        RleError: when the two masks of a pair lie on canvases of different size.
    """
    if len(a) != len(b):
        raise ValueError(f"ious compares pairs: got {len(a)} and {len(b)} masks")
    part_a, start_a, end_a, canvas_a = foreground_runs(a)
    part_b, start_b, end_b, canvas_b = foreground_runs(b)
    if (canvas_a != canvas_b).any():
        pair = int(np.flatnonzero(canvas_a != canvas_b)[0])
        raise RleError(f"pair {pair}: masks of {canvas_a[pair]} and {canvas_b[pair]} pixels cannot be compared")
    base = starts_of(canvas_a)  # all canvases in a row: positions of different pairs never meet
    begin = start_b + base[part_b]
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(end_b - start_b)])

    def covered(position: np.ndarray) -> np.ndarray:
        """Foreground of b before a position."""
        run = np.searchsorted(begin, position, side="right") - 1
        if len(begin) == 0:
            return np.zeros(len(position), np.int64)
        within = np.minimum(position - begin[run], (end_b - start_b)[run])
        return np.where(run >= 0, before[run] + within, 0)

    shared = covered(end_a + base[part_a]) - covered(start_a + base[part_a])
    intersection = np.bincount(part_a, weights=shared, minlength=len(a))
    size_a = np.bincount(part_a, weights=end_a - start_a, minlength=len(a))
    size_b = np.bincount(part_b, weights=end_b - start_b, minlength=len(a))
    union = size_a + size_b - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)


def iou(a: bytes, b: bytes, size_hw: tuple[int, int]) -> float:
    """Intersection over union of two masks of one canvas; 0 where both are empty."""
    for rle in (a, b):
        _check_canvas(counts_of(rle), size_hw)
    return float(ious([a], [b])[0])


def to_polygons(rle: bytes, size_hw: tuple[int, int], *, inset: float = 0.0) -> list[np.ndarray]:
    """Outlines of a mask along the cracks between pixels, one per piece of foreground (pieces touch along edges).

    A hole is joined to the outline around it by a cut of no width, so that every piece is one closed polygon, as COCO
    and YOLO want it. Rasterised by ``pycocotools.mask.frPyObjects`` and merged they give the same mask again, exactly.

    Args:
        rle: compressed run lengths. size_hw: rows and columns of the canvas.
        inset: see :func:`modelkit.rle.polygons.outlines`.

    Returns:
        (k, 2) float64 arrays of x, y; (0, 0) is the top-left corner of the top-left pixel; the last point is not the
        first one repeated. Empty for an empty mask.
    """
    counts = counts_of(rle)
    _check_canvas(counts, size_hw)
    x0, y0, x1, y1 = bbox(rle, size_hw).astype(int).tolist()
    crop = decode(rle, size_hw)[y0:y1, x0:x1]
    return [outline + np.array([x0, y0], float) for outline in outlines(crop, inset)]
