"""Pictures inside of a page: what was found as a layer of its own above the plain picture, so that it can be taken off.

Overlays paint with colours that cover to some share. What they paint upon black and upon white tells colour and share
of every pixel; so a layer is had of any product's overlay. One that does more than paint gives a whole picture instead.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.report.drawing import resized

PLAIN_QUALITY, LAYER_QUALITY = 72, 60
_MAX_DIFFERENCE = 4.0  # mean over the picture, of 255: resizing and rounding stay below 1

Draw = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Pictured:
    """A picture as data URIs: the plain one, and above it what was found, "" where the first holds both."""

    plain: str
    layer: str
    width_px: int
    height_px: int


def pictured(image_rgb_hwc_u8: np.ndarray, draw: Draw | None) -> Pictured:
    """A picture for a page.

    Args:
        image_rgb_hwc_u8: (H, W, 3) uint8.
        draw: picture -> (H', W', 3) uint8 with what was found; None draws nothing.
    """
    if draw is None:
        plain = resized(image_rgb_hwc_u8)
        return Pictured(data_uri(plain), "", plain.shape[1], plain.shape[0])
    drawn = draw(image_rgb_hwc_u8)
    height, width = drawn.shape[:2]
    layer = _layer(draw, image_rgb_hwc_u8.shape)
    plain = _at_size(image_rgb_hwc_u8, (height, width))
    if layer is None or np.abs(_over(plain, layer) - drawn).mean() > _MAX_DIFFERENCE:
        return Pictured(data_uri(drawn), "", width, height)
    return Pictured(data_uri(plain), data_uri(layer, LAYER_QUALITY), width, height)


def _layer(draw: Draw, shape: tuple[int, ...]) -> np.ndarray | None:
    """(H', W', 4) uint8 of colour and share; None where an overlay does not paint evenly."""
    black, white = (draw(np.full(shape, level, np.uint8)).astype(np.float32) for level in (0, 255))
    if black.shape != white.shape:
        return None
    share = np.clip(1 - (white - black).mean(-1, keepdims=True) / 255, 0, 1)
    colour = np.where(share > 0, black / np.maximum(share, 1 / 255), 0)
    return np.concatenate([colour, 255 * share], axis=-1).round().clip(0, 255).astype(np.uint8)


def _over(plain: np.ndarray, layer: np.ndarray) -> np.ndarray:
    share = layer[..., 3:].astype(np.float32) / 255
    return np.asarray((1 - share) * plain + share * layer[..., :3])


def _at_size(image_rgb_hwc_u8: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image_rgb_hwc_u8).resize(size_hw[::-1], Image.Resampling.LANCZOS))


def data_uri(pixels: np.ndarray, quality: int = PLAIN_QUALITY) -> str:
    """An (H, W, 3) picture or (H, W, 4) layer, uint8, as an address that holds it whole."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", quality=quality, alpha_quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
