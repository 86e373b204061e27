"""Every colour model that image files use -> 8-bit RGB, by fixed rules that never depend on a neighbour image.

| stored | becomes |
|---|---|
| 16-bit grey or colour | the upper byte (65535 -> 255, 256 -> 1); in TIFFs by :mod:`tasks.media.samples` |
| deeper integers, floats | by :mod:`tasks.media.samples` |
| grey, palette, 1 bit | RGB |
| alpha, or a palette or RGB file with a transparent colour | composited on white |
| a colour profile | sRGB, by :mod:`tasks.media.colour` |
| CMYK, LAB, HSV without a profile | Pillow's plain conversion |
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.media.colour import to_srgb
from tasks.media.options import DecodeOptions
from tasks.media.samples import to_8_bits

BACKGROUND_RGB = (255, 255, 255)
_BAND_ROWS, _BANDS_FROM_PX = 256, 2_000_000

_GREY_MODES = {"1", "L", "LA", "La"}
_PROFILED_MODES = {"RGB", "RGBA", "L", "LA", "CMYK", "LAB"}


def to_8_bit_image(image: Image.Image, bits: int, options: DecodeOptions) -> tuple[Image.Image, list[str]]:
    """A loaded image in a mode of 8 bits, and a note where samples were scaled.

    Args:
        image: its mode decides; ``I;16``, ``I`` and ``F`` are scaled, all others stay.
        bits: per sample in the file, where the mode no longer tells (Pillow narrows 16-bit colour while loading).
    """
    if not image.mode.startswith(("I", "F")):
        return image, [f"{bits}-bit samples: scaled to 8 bits"] if bits > 8 else []
    values = np.asarray(image)
    if bits == 16 and values.dtype.kind != "f":  # PNG and PGM define their range
        values = values.astype(np.uint16)
    grey, note = to_8_bits(values, options.sample_range, full_bits=16 if values.dtype == np.uint16 else None)
    scaled = Image.fromarray(grey)
    scaled.info = {"icc_profile": image.info.get("icc_profile")}
    return scaled, [note]


def to_rgb(image: Image.Image, options: DecodeOptions) -> tuple[np.ndarray, list[str]]:
    """The pixels of an image in a mode of 8 bits, (H, W, 3) uint8 in sRGB, and a note per conversion."""
    notes = ["grey converted to RGB"] if image.mode in _GREY_MODES else []
    transparent = image.has_transparency_data
    if image.mode in ("P", "PA", "1", "La", "RGBa") or (transparent and image.mode not in ("RGBA", "LA")):
        image = image.convert("RGBA" if transparent else "L" if image.mode == "1" else "RGB")
    image, converted = _in_srgb(image, options)
    notes += converted
    if transparent:
        pixels, composited = _on_background(image)
        return pixels, notes + (["transparent: composited on white"] if composited else [])
    if image.mode == "L":
        return np.repeat(np.asarray(image)[:, :, None], 3, axis=2), notes
    return _array(image.convert("RGB") if image.mode != "RGB" else image), notes


def _in_srgb(image: Image.Image, options: DecodeOptions) -> tuple[Image.Image, list[str]]:
    profile = image.info.get("icc_profile")
    if profile and image.mode in _PROFILED_MODES:
        if options.colour == "stored":
            return image, ["colour profile left aside, as asked"]
        converted, note = to_srgb(image, profile)
        if converted is not image:
            return converted, [note] if note else []
        notes = [note] if note else []
    else:
        notes = []
    if image.mode in {"CMYK", "LAB", "HSV"}:
        notes.append(f"{image.mode} converted to RGB without its colour profile")
    return image, notes


def _on_background(image: Image.Image) -> tuple[np.ndarray, bool]:
    """RGB with transparency flattened, and whether any pixel was not opaque."""
    rgba = image.convert("RGBA")
    lowest, _highest = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return _array(rgba.convert("RGB")), False
    canvas = Image.new("RGBA", rgba.size, (*BACKGROUND_RGB, 255))
    return _array(Image.alpha_composite(canvas, rgba).convert("RGB")), True


def _array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB image; a large one band by band, for Pillow makes two copies of what it is asked."""
    width, height = image.size
    if width * height < _BANDS_FROM_PX:
        return np.array(image)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels
