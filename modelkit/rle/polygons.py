"""Outlines of a mask that follow the cracks between its pixels.

The corners of the outlines are read off the 2 x 2 neighbourhoods of the mask. Every corner joins one horizontal and one
vertical edge, and along a row (or a column) of corners the edges are the pairs first-second, third-fourth, ..., so two
sorts link all corners into rings and nothing is traced pixel by pixel.
"""

from __future__ import annotations

import numpy as np


def outlines(mask: np.ndarray, inset: float = 0.0) -> list[np.ndarray]:
    """(k, 2) float64 rings of x, y corner coordinates, one per 4-connected piece of an (H, W) bool mask.

    Holes are joined to the ring around them by a horizontal cut of no width (its two sides coincide).

    Args:
        mask: what to outline.
        inset: move every corner so far (less than half a pixel) into the pixel that it belongs to. Coordinates that are
            then cut to whole numbers are those of the pixels along the outline, which fills to the mask again in
            rasterisers that draw the outline, too (``cv2.fillPoly``).
    """
    if not mask.any():
        return []
    corners, after = _linked_corners(mask)
    rings = _rings(after)
    if not inset:
        return _joined(mask, corners, rings, corners)
    return _joined(mask, corners, rings, corners + inset * _inwards(corners, after), inset)


def _inwards(corners: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(c, 2) of -1 and 1: on which side of a corner the foreground of its vertical and of its horizontal edge lies.

    A ring has foreground on its right: to the left of an edge that runs down, below one that runs right.
    """
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    arriving, leaving = corners - corners[before], corners[after] - corners
    steps = np.sign(arriving + leaving)  # one of the two edges is horizontal, the other vertical
    return np.stack([-steps[:, 1], steps[:, 0]], axis=1)


def _linked_corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (c, 2) int64 x, y and, for each, the next one along its ring (foreground on the right hand side).

    Where two pixels touch diagonally two corners share a place; each turns around its own pixel.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    up_left, up_right = padded[:-1, :-1], padded[:-1, 1:]
    low_left, low_right = padded[1:, :-1], padded[1:, 1:]
    total = up_left + up_right + low_left + low_right
    diagonal = (total == 2) & (up_left == low_right)
    single_y, single_x = np.nonzero((total == 1) | (total == 3))
    double_y, double_x = np.nonzero(diagonal)
    x = np.concatenate([single_x, double_x, double_x])
    y = np.concatenate([single_y, double_y, double_y])
    # twins: the first takes the left edge, the second the right one; the first takes the upper edge if the pixel
    # between left and up is set, else the lower one
    twin = np.concatenate([np.zeros(len(single_x), int), np.zeros(len(double_x), int), np.ones(len(double_x), int)])
    first_takes_upper = up_left[y, x] == 1
    vertical_rank = np.where(first_takes_upper, twin, 1 - twin)
    along_row = np.lexsort((twin, x, y)).reshape(-1, 2)
    along_column = np.lexsort((vertical_rank, y, x)).reshape(-1, 2)
    return np.stack([x, y], axis=1), _next_corner(padded, x, y, along_row, along_column)


def _next_corner(
    padded: np.ndarray, x: np.ndarray, y: np.ndarray, along_row: np.ndarray, along_column: np.ndarray
) -> np.ndarray:
    """Follow each edge so that foreground lies to the right: rightwards above a pixel, downwards on its right."""
    after = np.empty(len(x), np.int64)
    left, right = along_row.T
    pixel_below = padded[y[left] + 1, x[left] + 1] == 1
    after[np.where(pixel_below, left, right)] = np.where(pixel_below, right, left)
    upper, lower = along_column.T
    pixel_on_left = padded[y[upper] + 1, x[upper]] == 1
    after[np.where(pixel_on_left, upper, lower)] = np.where(pixel_on_left, lower, upper)
    return after


def _rings(after: np.ndarray) -> list[list[int]]:
    """The cycles of the permutation ``after``."""
    follow = after.tolist()
    seen = bytearray(len(follow))
    rings = []
    for start in range(len(follow)):
        if seen[start]:
            continue
        ring, corner = [], start
        while not seen[corner]:
            seen[corner] = 1
            ring.append(corner)
            corner = follow[corner]
        rings.append(ring)
    return rings


def _signed_area(points: np.ndarray) -> float:
    """Shoelace formula; positive for rings around foreground (clockwise as y points down), negative around holes."""
    x, y = points.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _joined(
    mask: np.ndarray, corners: np.ndarray, rings: list[list[int]], places: np.ndarray, inset: float = 0.0
) -> list[np.ndarray]:
    """Rings around foreground with the holes inside them spliced in, as arrays of the corners' places."""
    outer: list[list[int]] = []
    holes: list[list[int]] = []
    for ring in rings:
        (outer if _signed_area(corners[ring]) > 0 else holes).append(ring)
    if not holes:
        return [places[ring].astype(float) for ring in outer]
    after = np.empty(len(corners), np.int64)
    for ring in rings:
        after[ring] = np.roll(ring, -1)
    cuts = _cuts(mask, corners, after, holes)
    return [_walk(ring[0], corners, places, after, cuts, inset) for ring in outer]


def _cuts(
    mask: np.ndarray, corners: np.ndarray, after: np.ndarray, holes: list[list[int]]
) -> dict[int, list[tuple[int, int, int]]]:
    """For each corner: the cuts (x, y, corner of the hole) that leave the edge from it to the next, in walking order.

    From a hole's leftmost upper corner the cut runs left, above the row of pixels below that corner, to the nearest
    edge. That edge lies further left than any of the hole's own, so following cuts always ends at an outer ring.
    """
    x, y = corners.T
    vertical = np.flatnonzero(x == x[after])
    top = np.minimum(y[vertical], y[after[vertical]])
    order = np.lexsort((top, x[vertical]))
    vertical, top = vertical[order], top[order]
    key = x[vertical] * (mask.shape[0] + 1) + top
    cuts: dict[int, list[tuple[int, int, int]]] = {}
    for ring in holes:
        _, hole_y, corner = min((int(x[c]), int(y[c]), c) for c in ring)
        left = np.flatnonzero(~mask[hole_y, : x[corner]])
        edge_x = int(left[-1]) + 1 if len(left) else 0
        edge = int(vertical[np.searchsorted(key, edge_x * (mask.shape[0] + 1) + hole_y, side="right") - 1])
        cuts.setdefault(edge, []).append((edge_x, hole_y, corner))
    for edge, leaving in cuts.items():
        leaving.sort(key=lambda cut: cut[1], reverse=bool(y[after[edge]] < y[edge]))
    return cuts


def _walk(
    start: int,
    corners: np.ndarray,
    places: np.ndarray,
    after: np.ndarray,
    cuts: dict[int, list[tuple[int, int, int]]],
    inset: float,
) -> np.ndarray:
    """One ring with everything that is cut into it; an explicit stack, because holes can hang on holes without end.

    Inside the foreground a cut runs through the row of pixels below it, on both ways, up to the pixel beside the hole.
    """
    follow, x_of, place = after.tolist(), corners[:, 0].tolist(), places.tolist()
    points: list[tuple[float, float]] = []
    stack: list[tuple[float, float] | tuple[int, int, int]] = [(start, start, 0)]  # points, or steps (corner, home, 0)
    while stack:
        step = stack.pop()
        if len(step) == 2:
            points.append(step)
            continue
        corner, home, _ = step
        points.append((place[corner][0], place[corner][1]))
        if follow[corner] != home:
            stack.append((follow[corner], home, 0))
        elif home != start:  # around a hole: back to where the cut meets it
            stack.append((place[home][0], place[home][1]))
        for x, y, hole in reversed(cuts.get(corner, [])):
            leaving = (x + inset, y + inset)
            arriving = [(x_of[hole] - inset, y + inset)] if inset else []
            stack += [leaving, *arriving, (hole, hole, 0), *arriving, leaving]
    return np.array(points, float)
