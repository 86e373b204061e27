"""Samples deeper than 8 bits -> 8 bits, by one rule that the row tells.

| samples | ``auto`` | 0 and 255 are |
|---|---|---|
| unsigned | the fewest of 8, 10, 12, 14, 16, 24, 32, 64 bits that hold the largest sample | 0 and 2^n - 1 |
| signed, no sample below 0 | as unsigned | |
| signed, float | 0..1 for floats that keep to it; else the image's own range | smallest and largest sample |

Up to 16 bits the upper eight of the n bits are taken, beyond that the quotient is rounded. Formats that define their
range (16-bit PNG, PGM with its maximum) keep it. NaN and infinities count as 0.
"""

from __future__ import annotations

import numpy as np

from tasks.media.options import check_sample_range

_LADDER = (8, 10, 12, 14, 16, 24, 32, 64)


def to_8_bits(values: np.ndarray, sample_range: str, *, full_bits: int | None = None) -> tuple[np.ndarray, str]:
    """Scale samples to uint8.

    Args:
        values: any shape, any integer or float dtype but bool and complex.
        sample_range: see :class:`tasks.media.options.DecodeOptions`.
        full_bits: the format's own range is 0..2^n - 1: what ``auto`` and ``full`` take.

    Returns:
        The scaled samples, and a note that names the range.
    """
    width = values.dtype.itemsize * 8
    kind = f"{width}-bit{_KINDS[values.dtype.kind]} samples"
    limits = check_sample_range(sample_range)
    bits = full_bits if sample_range in ("auto", "full") else None
    if bits is None and sample_range == "auto":
        bits = _used_bits(values)
    elif bits is None and sample_range == "full" and values.dtype.kind == "u":
        bits = width
    if bits is not None and bits == width <= 16:
        return _shifted(values, bits), f"{kind}: scaled to 8 bits"
    if bits is not None and bits <= 16:
        return _shifted(values, bits), f"{kind}, {bits} bits used: scaled from 0..{2**bits - 1} to 0..255"
    if limits is None:
        limits = (0.0, 2.0**bits - 1) if bits is not None else _limits(values, sample_range)
    return _scaled(values, *limits), f"{kind}: scaled from {limits[0]:g}..{limits[1]:g} to 0..255"


_KINDS = {"u": "", "i": " signed", "f": " float"}


def _used_bits(values: np.ndarray) -> int | None:
    """The step of the ladder that holds every sample; None for floats and negative samples."""
    if values.dtype.kind == "f" or (values.size and values.min() < 0):
        return None
    largest = int(values.max()) if values.size else 0
    return next(bits for bits in _LADDER if largest < 1 << bits)


def _shifted(values: np.ndarray, bits: int) -> np.ndarray:
    return (values >> (bits - 8)).astype(np.uint8)


def _limits(values: np.ndarray, sample_range: str) -> tuple[float, float]:
    if sample_range == "full" and values.dtype.kind != "f":
        info = np.iinfo(values.dtype)
        return float(info.min), float(info.max)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind == "f" and (sample_range == "full" or (sample_range == "auto" and low >= 0 and high <= 1)):
        return 0.0, 1.0
    return low, high


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    plain = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    scaled = np.rint((plain - low) * scale).clip(0, 255)
    return np.asarray(scaled, np.uint8)
