"""Every colour model that image files use -> 8-bit RGB, by fixed rules that never depend on a neighbour image.

| stored | becomes |
|---|---|
| 16-bit grey or colour | the upper byte (65535 -> 255, 256 -> 1) |
| 32-bit integer or float grey | scaled from the image's own minimum..maximum to 0..255; NaN and infinities become 0 |
| grey, palette, 1 bit | RGB |
| alpha, or a palette or RGB file with a transparent colour | composited on white |
| CMYK, YCbCr, LAB, HSV | Pillow's plain conversion, without colour profiles |
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BACKGROUND_RGB = (255, 255, 255)

_GREY_MODES = {"1", "L", "LA", "La"}
_DEEP_MODES = {"I", "F"}


def to_rgb(image: Image.Image, bits: int) -> tuple[np.ndarray, list[str]]:
    """The pixels of a loaded image and notes on what was converted.

    Args:
        image: loaded; its mode decides.
        bits: bits per sample in the file, where the mode no longer tells (Pillow narrows 16-bit colour while loading).

    Returns:
        (H, W, 3) uint8, and one note per conversion that lost or invented something.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        notes = [f"{bits}-bit samples: scaled to 8 bits"] if bits > 8 else []
        return np.array(image), notes
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return _stacked(grey), ["grey converted to RGB", "16-bit samples: scaled to 8 bits"]
    if image.mode in _DEEP_MODES:
        return _deep_grey(np.asarray(image), bits)
    notes = ["grey converted to RGB"] if image.mode in _GREY_MODES else []
    if image.mode in {"CMYK", "LAB", "HSV"}:
        notes.append(f"{image.mode} converted to RGB without its colour profile")
    if bits > 8:
        notes.append(f"{bits}-bit samples: scaled to 8 bits")
    if image.has_transparency_data:
        pixels, composited = _on_background(image)
        return pixels, notes + (["transparent: composited on white"] if composited else [])
    if image.mode == "L":
        return _stacked(np.asarray(image)), notes
    return np.array(image.convert("RGB")), notes


def _stacked(grey_hw: np.ndarray) -> np.ndarray:
    return np.repeat(grey_hw[:, :, None], 3, axis=2)


def _deep_grey(values_hw: np.ndarray, bits: int) -> tuple[np.ndarray, list[str]]:
    """32-bit grey. Files with a known 16-bit range (PGM) scale by it, others by their own range."""
    note = "grey converted to RGB"
    if bits == 16 and values_hw.min() >= 0 and values_hw.max() <= 0xFFFF:
        return _stacked((values_hw >> 8).astype(np.uint8)), [note, "16-bit samples: scaled to 8 bits"]
    values = np.nan_to_num(values_hw.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    grey = np.rint((values - low) * scale).astype(np.uint8)
    kind = "float" if values_hw.dtype.kind == "f" else "integer"
    return _stacked(grey), [note, f"32-bit {kind} samples: scaled from {low:g}..{high:g} to 0..255"]


def _on_background(image: Image.Image) -> tuple[np.ndarray, bool]:
    """RGB with transparency flattened, and whether any pixel was not opaque."""
    rgba = image.convert("RGBA")
    lowest, _highest = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return np.array(rgba.convert("RGB")), False
    canvas = Image.new("RGBA", rgba.size, (*BACKGROUND_RGB, 255))
    return np.array(Image.alpha_composite(canvas, rgba).convert("RGB")), True
