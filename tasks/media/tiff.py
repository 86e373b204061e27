"""TIFFs of science and remote sensing: what Pillow narrows, wraps, blends or refuses, read by tifffile.

Which files: samples that are signed, float or deeper than 8 bits; more bands than the colour model has, unless the file
calls the rest alpha. Everything else stays with Pillow. The rule for bands: one is grey; of two the first is grey; of
three and more the first three are red, green and blue. The rule for ranges is in :mod:`tasks.media.samples`.
"""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from tasks.media.options import DecodeOptions, TooManyPixelsError
from tasks.media.samples import to_8_bits

logging.getLogger("tifffile").propagate = False  # its complaints come as exceptions, too
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHA = (1, 2)  # ExtraSamples: associated (multiplied into the colours), unassociated
_UNPACKED = frozenset({1, 8, 32773, 32946, 34925})  # none, Deflate, PackBits, LZMA: what tifffile alone unpacks
_FLOAT_PREDICTOR = 3
STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_MAX_BYTES_PER_PIXEL = 16
_SHIFTING, _SCALING = 5, 26  # bytes a sample that scaling to 8 bits takes, at most, beside the sample
_PREVIEW, _DNG_VERSION = 254, 50706  # tags: NewSubfileType, of whose bits the lowest means a preview; DNGVersion
_INFO = {"icc_profile": 34675, "orientation": 274}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class UnsupportedTiffError(Exception):
    """Raised for a sound TIFF that is not read; the message names what it is."""


def open_tiff(data: bytes, options: DecodeOptions) -> tuple[Image.Image, list[str]] | None:
    """The first page as an 8-bit image (L, LA, RGB or RGBA) with notes; None where Pillow reads it as well.

    The image's ``info`` holds its ``icc_profile`` and EXIF ``orientation``, where the file has them.

    Raises:
        TooManyPixelsError: more than the limit, by the header.
        UnsupportedTiffError: samples, bands or a compression that nobody here reads.
        Exception: whatever damaged files make tifffile raise.
    """
    import tifffile  # takes 0.2 s: only for those who have TIFFs

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        if _DNG_VERSION in page.tags:
            raise UnsupportedTiffError("camera raw (DNG)")
        if not _is_ours(page):
            return None
        _refuse(page, options)
        notes = [] if len(file.pages) == 1 else [f"multi-page: first of {len(file.pages)} pages"]
        if _PREVIEW in page.tags and int(page.tags[_PREVIEW].value) & 1:
            notes.append("the first page is marked as a preview")
        if page.compression in _UNPACKED and page.predictor != _FLOAT_PREDICTOR:
            samples_hwc = _unpacked(page)
        else:
            samples_hwc = _by_pillow(data, page)
        image, more = _image(page, samples_hwc, options)
        image.info = {name: page.tags[tag].value for name, tag in _INFO.items() if tag in page.tags}
    return image, notes + more


def unpacking_bytes(data: bytes, options: DecodeOptions) -> int | None:
    """Bytes that :func:`open_tiff` takes at most of a TIFF, beside the file; 0 for what it refuses, None for Pillow's.

    Raises:
        Exception: whatever damaged files make tifffile raise.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        if not _is_ours(page):
            return None
        try:
            _refuse(page, options)
        except (UnsupportedTiffError, TooManyPixelsError):
            return 0
    is_shifted = page.dtype == np.uint16 and options.sample_range in ("auto", "full")
    taken = min(page.samplesperpixel, 4) * (_SHIFTING if is_shifted else _SCALING)
    return int(page.imagewidth * page.imagelength * (page.samplesperpixel * page.dtype.itemsize + taken))


def describe_tiff(data: bytes) -> str:
    """The first page in words; raises what damaged files make tifffile raise."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return _words(file.pages.first)


def _is_ours(page: Any) -> bool:
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return False  # palettes, inks, YCbCr, Lab
    extra = page.samplesperpixel - _num_colours(page)
    plain_bands = extra == 0 or (extra == 1 and _has_alpha(page))
    plain_samples = page.bitspersample in (1, 2, 4) or (page.bitspersample == 8 and page.sampleformat in (1, 4))
    return not (plain_bands and plain_samples)


def _num_colours(page: Any) -> int:
    return 3 if page.photometric == _RGB else 1


def _has_alpha(page: Any) -> bool:
    extras = page.extrasamples
    return page.samplesperpixel > _num_colours(page) and len(extras) > 0 and extras[0] in _ALPHA


def _refuse(page: Any, options: DecodeOptions) -> None:
    """UnsupportedTiffError and TooManyPixelsError for what cannot or must not be unpacked."""
    if page.imagewidth * page.imagelength > options.max_pixels:
        raise TooManyPixelsError(page.imagewidth, page.imagelength)
    is_known = page.dtype is not None and page.dtype.kind in "uif" and page.imagedepth == 1
    if not is_known or page.samplesperpixel < _num_colours(page):
        raise UnsupportedTiffError(_words(page))
    wanted = page.imagewidth * page.imagelength * page.samplesperpixel * page.dtype.itemsize
    if wanted > _MAX_BYTES_PER_PIXEL * options.max_pixels:
        raise UnsupportedTiffError(f"{_words(page)} of {wanted} bytes")


def _words(page: Any) -> str:
    """``a TIFF of 5 bands of 16-bit signed samples (MINISBLACK, LZW)``."""
    kinds = {2: " signed", 3: " float", 5: " complex", 6: " complex"}
    kind = kinds.get(int(page.sampleformat), "") if isinstance(page.sampleformat, int) else ""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else "/".join(map(str, page.bitspersample))
    bands = "1 band" if page.samplesperpixel == 1 else f"{page.samplesperpixel} bands"
    colour, packing = (getattr(x, "name", str(x)) for x in (page.photometric, page.compression))
    return f"a TIFF of {bands} of {bits}-bit{kind} samples ({colour}, compression {packing})"


def _unpacked(page: Any) -> np.ndarray:
    """(H, W, bands) in native byte order, as many as the header says."""
    try:
        values = page.asarray(maxworkers=1)
    except (ValueError, KeyError, NotImplementedError) as error:
        if "imagecodecs" in str(error) or isinstance(error, NotImplementedError):
            raise UnsupportedTiffError(_words(page)) from error
        raise
    if values.ndim == 2:
        values = values[:, :, None]
    elif page.planarconfig == 2:
        values = values.transpose(1, 2, 0)
    if values.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise UnsupportedTiffError(_words(page))
    return np.asarray(values.astype(values.dtype.newbyteorder("="), copy=False))


def _by_pillow(data: bytes, page: Any) -> np.ndarray:
    """(H, W, bands) of packed data that libtiff must unpack; only where Pillow hands the samples on as they are."""
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            values = np.asarray(image) if image.mode.startswith(("I", "F")) else None
    except Image.UnidentifiedImageError:
        values = None
    if values is None or page.samplesperpixel != 1:
        raise UnsupportedTiffError(_words(page))
    if page.dtype == np.uint32:
        values = values.view(np.uint32)  # Pillow knows signed ones only
    return values[:, :, None]


def _image(page: Any, samples_hwc: np.ndarray, options: DecodeOptions) -> tuple[Image.Image, list[str]]:
    bands, stored = samples_hwc.shape[2], _num_colours(page)
    taken = 3 if bands >= 3 and not (stored == 1 and _has_alpha(page)) else 1
    colours, notes = samples_hwc[:, :, :taken], list[str]()
    if colours.dtype != np.uint8 or options.sample_range not in ("auto", "full"):
        colours, note = to_8_bits(colours, options.sample_range)
        notes.append(note)
    if page.photometric == _WHITE_IS_ZERO:
        colours = 255 - colours
    parts = [colours]
    if taken == stored and _has_alpha(page):
        alpha = samples_hwc[:, :, taken : taken + 1]
        parts.append(alpha if alpha.dtype == np.uint8 else to_8_bits(alpha, "full")[0])
        if page.extrasamples[0] == 1:
            parts[0] = _unmultiplied(*parts)
    if bands > taken + len(parts) - 1 or taken > stored:
        meant = "the first is grey" if taken == 1 else "the first three are red, green and blue"
        notes.append(f"{bands} bands: {meant}")
    merged = np.ascontiguousarray(np.concatenate(parts, axis=2))
    return Image.fromarray(merged[:, :, 0] if merged.shape[2] == 1 else merged, _MODES[merged.shape[2]]), notes


def _unmultiplied(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.uint16) * 255 // np.maximum(alpha, 1)
    return np.asarray(wide.clip(0, 255), np.uint8)
