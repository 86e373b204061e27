"""Shapes of annotation tools -> compressed run lengths on the item's canvas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from modelkit import rle


class ShapeError(ValueError):
    """A shape that cannot be drawn: too few points, run lengths of another canvas, an unknown form."""


class BoxError(ShapeError):
    """A box that is none: a side is no number or negative, so the whole file is to be doubted."""


def box_xyxy(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A box by its corner and size as a file states them. Raises BoxError."""
    sides = [float(value) for value in (x, y, width, height)]
    if not np.isfinite(sides).all() or min(sides[2:]) < 0:
        raise BoxError(f"{sides} is no box")
    return sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]


def polygons_to_rle(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> bytes:
    """The union of polygons, each flat ``[x0, y0, x1, y1, ...]`` in pixels, by COCO's own rule of rasterising.

    Parts of one or two points cover nothing, as in pycocotools. Raises ShapeError when no part has three, or one is not
    made of pairs of numbers.
    """
    parts = [[float(value) for value in polygon] for polygon in polygons]
    if any(len(part) % 2 or not np.isfinite(part).all() for part in parts):
        raise ShapeError("a polygon is made of pairs of numbers")
    usable = [part for part in parts if len(part) >= 6]
    if not usable:
        raise ShapeError("no polygon has three points")
    drawn = coco_mask.frPyObjects(usable, *size_hw)
    return bytes(coco_mask.merge(drawn)["counts"])


def coco_segmentation_to_rle(segmentation: Any, size_hw: tuple[int, int]) -> bytes:
    """COCO's three forms: polygons, uncompressed run lengths, compressed ones.

    Raises:
        ShapeError: none of the three, or of another canvas.
    """
    if isinstance(segmentation, list):
        return polygons_to_rle(segmentation, size_hw)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ShapeError(f"a segmentation must be polygons or run lengths, got {type(segmentation).__name__}")
    counts = segmentation["counts"]
    try:
        if isinstance(counts, list):
            mask = rle.compress(counts)
        else:
            mask = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
        covered = int(rle.counts_of(mask).sum())
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(f"run lengths are damaged: {error}") from error
    if covered != size_hw[0] * size_hw[1] or list(segmentation.get("size", size_hw)) != list(size_hw):
        raise ShapeError(f"run lengths cover {covered} pixels, the image is {size_hw[0]} x {size_hw[1]}")
    return mask


def ellipse_to_rle(
    centre_xy: tuple[float, float], radii_xy: tuple[float, float], degrees: float, size_hw: tuple[int, int]
) -> bytes:
    """Pixels whose centre lies in the ellipse, turned clockwise by ``degrees`` about its centre."""
    if min(radii_xy) <= 0:
        raise ShapeError(f"an ellipse needs radii above 0, got {radii_xy}")
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    dx, dy = x - centre_xy[0], y - centre_xy[1]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = cos * dx + sin * dy, -sin * dx + cos * dy
    return rle.encode((along / radii_xy[0]) ** 2 + (across / radii_xy[1]) ** 2 <= 1.0)


def rectangle_to_rle(
    corner_xy: tuple[float, float], size_xy: tuple[float, float], degrees: float, size_hw: tuple[int, int]
) -> bytes:
    """A rectangle turned clockwise by ``degrees`` about its top-left corner."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    (x, y), (width, height) = corner_xy, size_xy
    offsets = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    points = [value for dx, dy in offsets for value in (x + cos * dx - sin * dy, y + sin * dx + cos * dy)]
    return polygons_to_rle([points], size_hw)


def box_mask_to_rle(
    counts: Sequence[int], left: int, top: int, width: int, height: int, size_hw: tuple[int, int]
) -> bytes:
    """CVAT's masks: run lengths row by row inside a box, background first.

    Raises:
        ShapeError: the box leaves the image, or the run lengths do not fill it.
    """
    if left < 0 or top < 0 or left + width > size_hw[1] or top + height > size_hw[0]:
        raise ShapeError(
            f"a mask of {width} x {height} at ({left}, {top}) leaves the image {size_hw[1]} x {size_hw[0]}"
        )
    runs = np.asarray(counts, np.int64)
    if (runs < 0).any() or int(runs.sum()) != width * height:
        raise ShapeError(f"run lengths cover {int(runs.sum())} pixels of a box of {width} x {height}")
    canvas = np.zeros(size_hw, bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    canvas[top : top + height, left : left + width] = inside
    return rle.encode(canvas)


def brush_to_rle(packed: Sequence[int], size_hw: tuple[int, int]) -> bytes:
    """Label Studio's brush strokes: a bit stream of runs over the bytes of an RGBA image; alpha above 0 is the mask.

    The stream holds: 32 bits number of values, 5 bits word length - 1, four times 4 bits length - 1 of the run
    lengths' own fields; then runs of: 1 bit "all equal", 2 bits which field, the length - 1, and one word for equal
    values or one for each of them.

    Raises:
        ShapeError: it ends too early, or is not four bytes a pixel.
    """
    bits = _Bits(packed)
    total, word = bits.take(32), bits.take(5) + 1
    fields = [bits.take(4) + 1 for _ in range(4)]
    if total != 4 * size_hw[0] * size_hw[1]:
        raise ShapeError(f"brush strokes over {total} bytes, the image {size_hw[0]} x {size_hw[1]} has four a pixel")
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        equal, field = bits.take(1), bits.take(2)
        end = at + bits.take(fields[field]) + 1
        if end > total:
            raise ShapeError("brush strokes run over the end of the image")
        values[at:end] = bits.take(word) if equal else bits.words(end - at, word)
        at = end
    return rle.encode(values.reshape(*size_hw, 4)[:, :, 3] > 0)


def rle_to_brush(mask: bytes, size_hw: tuple[int, int]) -> list[int]:
    """The inverse of :func:`brush_to_rle`: all four bytes of a foreground pixel are 255."""
    flat = np.repeat(rle.decode(mask, size_hw).reshape(-1), 4)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    bits = [f"{len(flat):032b}{7:05b}{2:04b}{7:04b}{11:04b}{15:04b}"]
    for start, stop in pairwise(edges.tolist()):
        word = f"{255 if flat[start] else 0:08b}"
        while start < stop:
            length = min(stop - start, 1 << 16)
            bits.append(f"111{length - 1:016b}{word}")
            start += length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[k : k + 8], 2) for k in range(0, len(text), 8)]


def rle_to_box_mask(mask: bytes, size_hw: tuple[int, int]) -> tuple[list[int], int, int, int, int]:
    """The inverse of :func:`box_mask_to_rle`: counts, left, top, width, height. Raises ShapeError for an empty mask."""
    x0, y0, x1, y1 = (int(value) for value in rle.bbox(mask, size_hw))
    inside = rle.decode(mask, size_hw)[y0:y1, x0:x1].reshape(-1)
    if not inside.any():
        raise ShapeError("an empty mask has no box")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(inside)) + 1, [len(inside)]])
    counts = np.diff(edges).tolist()
    return ([0, *counts] if inside[0] else counts), x0, y0, x1 - x0, y1 - y0


class _Bits:
    """A stream of bits, most significant first."""

    def __init__(self, packed: Sequence[int]) -> None:
        self._bits = np.unpackbits(np.asarray(packed, np.uint8))
        self._at = 0

    def take(self, n: int) -> int:
        """The next ``n`` bits as a number."""
        return int("".join(map(str, self._next(n))), 2)

    def words(self, count: int, length: int) -> np.ndarray:
        """``count`` numbers of ``length`` bits."""
        weights = 1 << np.arange(length - 1, -1, -1, dtype=np.int64)
        return (self._next(count * length).reshape(count, length) @ weights).astype(np.uint8)

    def _next(self, n: int) -> np.ndarray:
        part = self._bits[self._at : self._at + n]
        if len(part) < n:
            raise ShapeError("brush strokes end too early")
        self._at += n
        return part
