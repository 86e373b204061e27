"""Drawing actors (digits with colour and pose) over a background, with exact masks, UV and flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelkit.digitscape.glyphs import GLYPH_PX, Glyph, sample_bilinear

_EDGE_SHARPNESS = 0.9  # alpha rises by about 0.5 * sharpness per pixel across a stroke's border


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a glyph stands: ``scene = matrix @ (glyph - glyph centre) + position`` in pixels (centres at integers).

    Args:
        matrix: (2, 2) float64.
        position_xy: (2,) float64.
    """

    matrix: np.ndarray
    position_xy: np.ndarray

    def to_scene(self, glyph: Glyph, points_xy: np.ndarray) -> np.ndarray:
        """Map (k, 2) glyph pixels to (k, 2) scene pixels, float64."""
        return (points_xy - glyph.centre_xy) @ self.matrix.T + self.position_xy

    def outline_xyxy(self, glyph: Glyph) -> tuple[float, float, float, float]:
        """Box around the transformed tight box."""
        x0, y0, x1, y1 = glyph.tight_xyxy
        half_w, half_h = float(x1 - x0) / 2, float(y1 - y0) / 2
        (a, b), (c, d) = self.matrix.tolist()
        reach_x, reach_y = abs(a) * half_w + abs(b) * half_h, abs(c) * half_w + abs(d) * half_h
        x, y = self.position_xy.tolist()
        return x - reach_x, y - reach_y, x + reach_x, y + reach_y


def make_matrix(scale: float, angle_rad: float, shear: float, aspect: float) -> np.ndarray:
    """Rotation @ shear @ anisotropic scale, (2, 2) float64; ``aspect`` > 1 widens."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    stretch = np.array([(scale * math.sqrt(aspect), 0.0), (0.0, scale / math.sqrt(aspect))])
    return np.array([(cos, -sin), (sin, cos)]) @ np.array([(1.0, shear), (0.0, 1.0)]) @ stretch


@dataclass(frozen=True, slots=True)
class Stamp:
    """A glyph rasterised at a pose, cut to the canvas.

    Args:
        window: row and column slices of the canvas it covers.
        alpha: (h, w) float32 coverage in 0..1.
        ink: (h, w) bool, the mask (coverage of at least a half).
        total_px: ink pixels of the whole digit, also those outside the canvas.
        glyph_x, glyph_y: (h, w) float32 glyph coordinates of every pixel.
    """

    window: tuple[slice, slice]
    alpha: np.ndarray
    ink: np.ndarray
    total_px: int
    glyph_x: np.ndarray
    glyph_y: np.ndarray


def stamp(glyph: Glyph, pose: Pose, size_hw: tuple[int, int]) -> Stamp | None:
    """Rasterise a glyph; None when no part of it lies on the canvas."""
    x0, y0, x1, y1 = pose.outline_xyxy(glyph)
    left, top, right, bottom = math.floor(x0) - 1, math.floor(y0) - 1, math.ceil(x1) + 2, math.ceil(y1) + 2
    (a, b), (c, d) = pose.matrix.tolist()
    determinant = a * d - b * c
    inverse = np.array([(d, -b), (-c, a)]) / determinant
    xs = np.arange(left, right) - pose.position_xy[0]
    ys = np.arange(top, bottom) - pose.position_xy[1]
    centre = glyph.centre_xy
    glyph_x = (inverse[0, 0] * xs + centre[0]).astype(np.float32) + (inverse[0, 1] * ys).astype(np.float32)[:, None]
    glyph_y = (inverse[1, 0] * xs + centre[1]).astype(np.float32) + (inverse[1, 1] * ys).astype(np.float32)[:, None]
    alpha = sample_bilinear(glyph.field, glyph_x, glyph_y)
    scale_px = math.sqrt(abs(determinant)) * GLYPH_PX / 28
    alpha -= np.float32(glyph.threshold)
    # steep enough that bare background (field 0) gets no ink at all
    alpha *= np.float32(max(2 * _EDGE_SHARPNESS * scale_px, 2.0, 0.5 / glyph.threshold))
    alpha += np.float32(0.5)
    np.clip(alpha, 0, 1, out=alpha)
    ink = alpha >= 0.5
    rows = slice(max(0, top), min(size_hw[0], bottom))
    columns = slice(max(0, left), min(size_hw[1], right))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    return Stamp((rows, columns), alpha[inner], ink[inner], int(ink.sum()), glyph_x[inner], glyph_y[inner])


@dataclass(frozen=True, slots=True)
class Paint:
    """How the ink of a digit looks.

    Args:
        colour: (3,) float32 in 0..255.
        shade_xy: (2,) float32, relative change of brightness across the digit in its own frame.
        opacity: 0..1.
    """

    colour: np.ndarray
    shade_xy: np.ndarray
    opacity: float


def paint(image: np.ndarray, drawn: Stamp, look: Paint) -> None:
    """Blend a stamp into (H, W, 3) float32 ``image`` in place."""
    patch = image[drawn.window]
    half = np.float32(GLYPH_PX / 2)
    across, down = look.shade_xy / half
    shade = drawn.glyph_x * across + drawn.glyph_y * down
    shade += 1 - half * (across + down)
    weight = (drawn.alpha * np.float32(look.opacity))[..., None]
    ink = shade[..., None] * look.colour
    ink -= patch
    ink *= weight
    patch += ink


def finish_image(
    rng: np.random.Generator, image: np.ndarray, blur: float, noise_std: float, gain: float, offset: float
) -> np.ndarray:
    """The camera: blur, gain and offset, sensor noise, 8 bits.

    Args:
        rng: noise source.
        image: (H, W, 3) float32 in 0..255.
        blur: weight of each neighbour of a three-tap filter per axis, 0 (none) to 1/3 (box).
        noise_std: standard deviation in grey levels.
        gain: contrast about mid-grey.
        offset: added grey levels.
    """
    if blur > 0:
        side, middle = np.float32(blur), np.float32(1 - 2 * blur)
        rows = np.concatenate([image[:1], image, image[-1:]])
        image = middle * image + side * (rows[:-2] + rows[2:])
        columns = np.concatenate([image[:, :1], image, image[:, -1:]], axis=1)
        image = middle * image + side * (columns[:, :-2] + columns[:, 2:])
    image = image * np.float32(gain)
    image += np.float32(128 + offset - 128 * gain)
    if noise_std > 0:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(noise_std)
        image += noise
    np.rint(image, out=image)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)
