"""Turning pixels upright: the eight EXIF orientations and the display matrix of a video frame."""

from __future__ import annotations

import struct

import numpy as np

_FIXED_POINT = 1 << 16  # display matrices hold 16.16 fixed point numbers


def from_exif(pixels_hwc: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1..8, tag 0x0112 of EXIF 2.32): the returned view is upright.

    Args:
        pixels_hwc: (H, W, C), any dtype.
        orientation: the stored value; 1 means upright already, 5 to 8 swap rows and columns.
    """
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p[::-1].transpose(1, 0, 2),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: p[:, ::-1].transpose(1, 0, 2),
    }
    return turned[orientation](pixels_hwc)


def display_orientation(matrix: bytes) -> int | None:
    """The EXIF orientation that says the same as a 3x3 display matrix, None where it is no quarter turn or mirroring.

    The matrix is nine little-endian int32 in row order (ISO 14496-12, 6.2.2): (x, y, 1) -> (a x + c y, b x + d y), with
    y down; a, b, c and d are in 16.16 fixed point.
    """
    if len(matrix) < 36:
        return None
    a, b, _u, c, d, *_rest = struct.unpack("<9i", matrix[:36])
    terms = [value / _FIXED_POINT for value in (a, b, c, d)]
    if any(abs(term - round(term)) > 0.01 for term in terms):
        return None
    orientations: dict[tuple[int, ...], int] = {
        (1, 0, 0, 1): 1,
        (-1, 0, 0, 1): 2,
        (-1, 0, 0, -1): 3,
        (1, 0, 0, -1): 4,
        (0, 1, 1, 0): 5,
        (0, 1, -1, 0): 6,
        (0, -1, -1, 0): 7,
        (0, -1, 1, 0): 8,
    }
    return orientations.get(tuple(round(term) for term in terms))
