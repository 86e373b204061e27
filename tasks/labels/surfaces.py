"""Points of surfaces (dense correspondence), as DensePose's COCO files have them.

An annotation of theirs has lists of one length: ``dp_x`` and ``dp_y``, the places of its labelled points, in 256ths of
the sides of its ``bbox``; ``dp_I``, the part of the surface that each is on; ``dp_U`` and ``dp_V``, where on that part
(Güler et al. 2018; DensePose-COCO). Coarse parts (``dp_masks``) are not read: the object's own mask is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tasks.labels.shapes import ShapeError

SurfacePoint = tuple[float, float, float, float, float]
"""x and y (source pixels), part (from 1 on; 0: labelled as background), u and v in [0, 1]."""

BROKEN_SURFACE = "points of a surface that cannot be read (the object is kept)"
SURFACE_WITHOUT_MASK = "points of a surface of an object that has no mask to learn it with (the object is kept)"
_LISTS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
_SIDE = 256.0  # of the frame in which places are stated
_MOST_PARTS = 255  # so many a byte of a stored surface can tell from background
_SLACK = 1e-3  # of coordinates that another program rounded


def coco_surface_points(
    annotation: Mapping[str, Any], box_xyxy: tuple[float, float, float, float]
) -> tuple[SurfacePoint, ...] | None:
    """The points of a DensePose annotation; None where it has none.

    Args:
        annotation: of a COCO file.
        box_xyxy: its ``bbox``, source pixels.

    Raises:
        ShapeError: lists that are missing or of different lengths, values that are no numbers, parts that are not
            0 to 255, or coordinates outside of [0, 1].
    """
    if not any(annotation.get(name) for name in _LISTS):
        return None
    try:
        columns = [[float(value) for value in annotation[name]] for name in _LISTS]
    except (KeyError, TypeError, ValueError) as error:
        raise ShapeError(f"points of a surface need numbers in {', '.join(_LISTS)}: {error}") from error
    if len({len(each) for each in columns}) > 1:
        raise ShapeError(f"{', '.join(_LISTS)} differ in length: {[len(each) for each in columns]}")
    x0, y0, x1, y1 = box_xyxy
    across, down = (x1 - x0) / _SIDE, (y1 - y0) / _SIDE
    points = zip(*columns, strict=True)
    return tuple((x0 + _finite(x) * across, y0 + _finite(y) * down, *_on_surface(*where)) for x, y, *where in points)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ShapeError(f"a point of a surface needs a place, got {value:g}")
    return value


def _on_surface(part: float, u: float, v: float) -> tuple[float, float, float]:
    if not (0 <= part <= _MOST_PARTS and part == int(part)):
        raise ShapeError(f"parts of a surface are whole numbers from 0 to {_MOST_PARTS}, got {part:g}")
    if not all(-_SLACK <= value <= 1 + _SLACK for value in (u, v)):
        raise ShapeError(f"coordinates on a surface lie in [0, 1], got ({u:g}, {v:g})")
    return part, min(max(u, 0.0), 1.0), min(max(v, 0.0), 1.0)
