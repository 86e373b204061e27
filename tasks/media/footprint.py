"""How much memory decoding an image file takes, told from its header: what must be free before it begins.

Decoders hold more than the pixels that they give: libjpeg all coefficients of a progressive file, Pillow four bytes a
pixel and a copy for each conversion. The numbers are measured (growth of the largest resident size on 16 and 25
megapixels, bytes a pixel) and rounded up.
"""

from __future__ import annotations

import io

from PIL import Image

from tasks.media import sniffing
from tasks.media.colour import is_srgb
from tasks.media.options import DecodeOptions
from tasks.media.tiff import unpacking_bytes

_BY_MODE = {"1": 8, "L": 8, "P": 10, "RGB": 8, "I;16": 11, "RGBA": 21, "LA": 21, "PA": 21, "CMYK": 13}
_BY_FORMAT = {"WEBP": 17, "JPEG2000": 21, "AVIF": 11}
_TRANSPARENT = {"WEBP": 31, "JPEG2000": 27, "AVIF": 26}
_JPEG, _TURNED, _PROGRESSIVE, _CONVERTED = 3.2, 6.2, 9.5, 15
_UNKNOWN = 32
_ORIENTATION_TAG = 0x0112
_DEFAULTS = DecodeOptions()


def decoding_bytes(data: bytes, options: DecodeOptions = _DEFAULTS) -> int:
    """Bytes that are taken at most while an image file is decoded, beside the file; 0 for what never is."""
    try:
        if (claimed := sniffing.claimed_size_wh(data)) is not None:  # Pillow reserves a WebP's canvas while opening it
            return _within(claimed, options, (_TRANSPARENT if sniffing.webp_has_alpha(data) else _BY_FORMAT)["WEBP"])
        if (unpacking := unpacking_bytes(data, options)) is not None:
            return unpacking
        with Image.open(io.BytesIO(data)) as image:
            return _within(image.size, options, _bytes_a_pixel(image, options))
    except Exception:  # noqa: BLE001 - what cannot be opened is told by who decodes it
        return 0


def _within(size_wh: tuple[int, int], options: DecodeOptions, bytes_a_pixel: float) -> int:
    pixels = size_wh[0] * size_wh[1]
    return int(pixels * bytes_a_pixel) if pixels <= options.max_pixels else 0


def _bytes_a_pixel(image: Image.Image, options: DecodeOptions) -> float:
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        return _of_jpeg(image, options)
    name, transparent = image.format or "", "transparency" in image.info or "A" in image.mode
    known: float = _BY_FORMAT.get(name, _BY_MODE.get(image.mode, _UNKNOWN))
    return max(known, _TRANSPARENT.get(name, _BY_MODE["RGBA"])) if transparent else known


def _of_jpeg(image: Image.Image, options: DecodeOptions) -> float:
    profile = image.info.get("icc_profile")
    if profile and (options.colour == "stored" or not is_srgb(profile, image.mode)):
        return _CONVERTED
    turned = _TURNED if image.getexif().get(_ORIENTATION_TAG, 1) != 1 else _JPEG
    return max(turned, _PROGRESSIVE if image.info.get("progressive") else _JPEG)
