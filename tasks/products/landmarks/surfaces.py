"""Dense correspondence as it is stored: a PNG of each object, red the part, green and blue the place on it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from modelkit.carriers.landmarks import Surface


def surface_to_png(surface: Surface) -> bytes:
    """Lossless; any program that opens pictures opens it."""
    out = io.BytesIO()
    pixels = np.stack([surface.parts, *surface.uv], axis=-1)
    Image.fromarray(pixels).save(out, "PNG", compress_level=6)
    return out.getvalue()


def surface_from_png(data: bytes, origin_xy: tuple[int, int]) -> Surface:
    """The surface again. Raises ValueError for bytes that are none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            pixels = np.array(picture)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"a surface of {len(data)} bytes is no PNG") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"a surface must be an RGB PNG of 8 bits, got {pixels.shape} {pixels.dtype}")
    return Surface(origin_xy, pixels[..., 0], np.moveaxis(pixels[..., 1:], -1, 0))
