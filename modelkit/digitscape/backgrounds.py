"""Backgrounds: one to three regions cut from photographs, textures and smooth colour fields."""

from __future__ import annotations

import math

import numpy as np

from modelkit.digitscape.sources import FIRST_STUFF_ID, STUFF_NAMES, Picture

_PLAIN_ID = FIRST_STUFF_ID + STUFF_NAMES.index("plain")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def compose_background(
    rng: np.random.Generator,
    pictures: tuple[Picture, ...],
    size_hw: tuple[int, int],
    plain_share: float,
    max_regions: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one background.

    Args:
        rng: the only source of randomness.
        pictures: what regions are cut from.
        size_hw: rows and columns of the result.
        plain_share: probability that a region is a smooth colour field instead of a picture.
        max_regions: 1 to ``max_regions`` regions share the canvas.

    Returns:
        ``(image, stuff)``: (H, W, 3) float32 in 0..255 and (H, W) uint8 stuff ids, both exact to the pixel.
    """
    image, stuff_id = _draw_layer(rng, pictures, size_hw, plain_share)
    stuff = np.full(size_hw, stuff_id, np.uint8)
    for _ in range(int(rng.integers(0, max_regions))):
        layer, stuff_id = _draw_layer(rng, pictures, size_hw, plain_share)
        region = _draw_region(rng, size_hw)
        np.copyto(image, layer, where=region[..., None])
        stuff[region] = stuff_id
    return image, stuff


def _draw_layer(
    rng: np.random.Generator, pictures: tuple[Picture, ...], size_hw: tuple[int, int], plain_share: float
) -> tuple[np.ndarray, int]:
    if rng.random() < plain_share:
        return _draw_plain(rng, size_hw), _PLAIN_ID
    picture = pictures[int(rng.integers(len(pictures)))]
    level = picture.levels[int(rng.integers(len(picture.levels)))]
    return _recolour(rng, _crop(rng, level, size_hw)), picture.stuff_id


def _crop(rng: np.random.Generator, level: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A random window, mirrored at the borders where the picture is smaller, in one of eight orientations."""
    turned = rng.random() < 0.5
    rows, columns = (size_hw[1], size_hw[0]) if turned else size_hw
    crop = _window(rng, _window(rng, level, 0, rows), 1, columns)
    return crop.transpose(1, 0, 2) if turned else crop


def _window(rng: np.random.Generator, picture: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """``wanted`` rows or columns from a random place, in either direction; a view where the picture is large enough."""
    available = picture.shape[axis]
    start = int(rng.integers(0, max(1, available - wanted + 1)))
    if start + wanted <= available:
        part = picture[start : start + wanted] if axis == 0 else picture[:, start : start + wanted]
    else:
        index = np.arange(start, start + wanted) % (2 * available)
        part = picture.take(np.where(index < available, index, 2 * available - 1 - index), axis=axis)
    if rng.random() < 0.5:
        part = part[::-1] if axis == 0 else part[:, ::-1]
    return part


def _recolour(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """Brightness, contrast, channel order and tint; grey pictures become coloured now and then."""
    image = crop.astype(np.float32, order="C")
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    contrast = np.float32(rng.uniform(0.45, 1.2))
    tint = rng.uniform(0.75, 1.25, 3).astype(np.float32) if rng.random() < 0.6 else np.ones(3, np.float32)
    mean = image[::4, ::4].reshape(-1, 3).mean(axis=0)
    target = mean * tint + np.float32(rng.uniform(-40, 40))
    if rng.random() < 0.1:
        contrast = -contrast
        target = 255 - target
    image -= mean
    image *= contrast
    image += target
    return np.clip(image, 0, 255, out=image)


def _draw_plain(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """A colour gradient with slow, smooth variation."""
    height, width = size_hw
    corners = rng.uniform(0, 255, 3) + rng.uniform(-70, 70, (2, 2, 3))
    ys = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    xs = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    corners = corners.astype(np.float32)
    image = (corners[0, 0] * (1 - xs) + corners[0, 1] * xs) * (1 - ys) + (
        corners[1, 0] * (1 - xs) + corners[1, 1] * xs
    ) * ys
    frequency = rng.uniform(1, 12, 2).astype(np.float32)
    phase = np.float32(rng.uniform(0, 2 * np.pi))
    wave = np.sin(np.float32(2 * np.pi) * (frequency[0] * xs + frequency[1] * ys) + phase)
    image += np.float32(rng.uniform(0, 25)) * wave
    return np.clip(image, 0, 255, out=image)


def _draw_region(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """A half plane with a wavy border, or an ellipse; (H, W) bool."""
    height, width = size_hw
    ys = np.arange(height, dtype=np.float32)[:, None]
    xs = np.arange(width, dtype=np.float32)[None, :]
    centre_y, centre_x = (float(v) for v in rng.uniform(0.2, 0.8, 2) * size_hw)
    if rng.random() < 0.35:
        radius_y, radius_x = (float(v) for v in rng.uniform(0.15, 0.45, 2) * size_hw)
        return np.asarray(((ys - centre_y) / radius_y) ** 2 + ((xs - centre_x) / radius_x) ** 2 < 1)
    angle = float(rng.uniform(0, 2 * np.pi))
    across = (xs - centre_x) * math.cos(angle) + (ys - centre_y) * math.sin(angle)
    along = -(xs - centre_x) * math.sin(angle) + (ys - centre_y) * math.cos(angle)
    amplitude, wavelength = float(rng.uniform(0, 14)), float(rng.uniform(8, 40))
    return np.asarray(across > amplitude * np.sin(along / wavelength))


def luminance(colour: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma of (..., 3) values, same range."""
    return np.asarray(colour, np.float32) @ _LUMA
