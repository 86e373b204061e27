"""Bytes of an image file -> RGB pixels, whatever the file claims to be.

The content decides, never the name: a JPEG called ``.png`` is decoded and noted. Pixels are upright and in sRGB: EXIF
rotation and colour profiles are applied, transparency is composited on white, deeper samples are scaled to 8 bits by a
fixed rule (docs/media.md). What had to be done is said in ``notes``. A file that can't be decoded completely gives a
failure, not half an image.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import warnings
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tasks.media import png, sniffing
from tasks.media.colour import is_srgb
from tasks.media.endings import ENDINGS_OF_FORMAT, ending_of
from tasks.media.jpeg import decode_jpeg, with_end
from tasks.media.options import DamagedError, DecodeOptions, TooManyPixelsError
from tasks.media.orientation import from_exif
from tasks.media.pixels import to_8_bit_image, to_rgb
from tasks.media.tiff import STARTS, UnsupportedTiffError, describe_tiff, open_tiff, unpacking_bytes
from tasks.records import ItemFailure

# Of the table of endings what Pillow tells by its first bytes; a TGA has no signature, so its name must speak for it.
FORMATS = tuple(name for name in ENDINGS_OF_FORMAT if name not in ("MPO", "TGA"))

_DEFAULTS = DecodeOptions()
_ORIENTATION_TAG = 0x0112
_KNOWN_ENDINGS = frozenset[str]().union(*ENDINGS_OF_FORMAT.values())
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_RIFF = b"RIFF"  # as a WebP begins

# Bytes a pixel that decoding takes, measured (growth of the largest resident size on 16 and 25 megapixels), rounded up.
_BY_MODE = {"1": 8, "L": 8, "P": 10, "RGB": 8, "I;16": 11, "RGBA": 21, "LA": 21, "PA": 21, "CMYK": 13}
_BY_FORMAT = {"WEBP": 17, "JPEG2000": 21, "AVIF": 11}
_TRANSPARENT = {"WEBP": 31, "JPEG2000": 27, "AVIF": 26}
_JPEG, _TURNED, _PROGRESSIVE, _CONVERTED = 3.2, 6.2, 9.5, 15
_UNKNOWN = 32

# Pillow's own limit is one number for the whole process and warns on stderr; ours is a parameter, checked per file.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
Image.init()  # all decoders now, not at the first image of some thread
with contextlib.suppress(OSError, AttributeError):
    # libtiff writes its complaints to the process's stderr; they come as exceptions, too.
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class Frame:
    """One item: an image (frame 0) or a frame of a video. Either pixels or a failure, never both.

    Args:
        frame: index in presentation order; 0 for an image.
        pts_s: presentation time in seconds; None for an image.
        image_rgb_hwc_u8: (H, W, 3) uint8, upright, C-contiguous; None if it failed.
        size_hw: rows and columns of the upright image; None if it failed.
        notes: what decoding had to do.
        failure: why there are no pixels.
    """

    frame: int
    pts_s: float | None
    image_rgb_hwc_u8: np.ndarray | None
    size_hw: tuple[int, int] | None
    notes: tuple[str, ...] = ()
    failure: ItemFailure | None = None


def no_frame(index: int, why: ItemFailure, pts_s: float | None = None) -> Frame:
    """What stands for a frame without pixels."""
    return Frame(index, pts_s, None, None, failure=why)


def decode_image(data: bytes, *, name: str = "", options: DecodeOptions = _DEFAULTS) -> Frame:
    """Decode one image file completely. Never raises for what the bytes hold, never prints.

    Args:
        data: the whole file.
        name: the item's uri; only its ending is looked at, to note where it does not fit the content.
        options: files whose *header* promises more than ``max_pixels`` are refused before anything is decoded.

    Returns:
        The pixels, or the failure (stage ``decode``) with one of the types EmptyFile, NotAnImage, UnsupportedFormat,
        TooManyPixels, TruncatedImage, CorruptImage.
    """
    if not data:
        return no_frame(0, failure("EmptyFile", "the file is empty (0 bytes)"))
    try:
        return _decoded(data, name, options)
    except Exception as error:  # noqa: BLE001 - hostile bytes make decoders raise anything; one item must not stop a shard
        why = error
    shorter = png.without_extras(data) if not isinstance(why, TooManyPixelsError) else None
    if shorter is None:
        return no_frame(0, _failure_of(why, data, options))
    try:
        image = _decoded(shorter[0], name, options)
    except Exception as error:  # noqa: BLE001 - as above
        return no_frame(0, _failure_of(error, data, options))
    return replace(image, notes=(*image.notes, *shorter[1]))


def decoding_bytes(data: bytes, options: DecodeOptions = _DEFAULTS) -> int:
    """Bytes that are taken at most while an image file is decoded, beside the file, told from its header.

    Decoders hold more than the pixels that they give: libjpeg all coefficients of a progressive file, Pillow four bytes
    a pixel and a copy for each conversion. 0 for what is never decoded.
    """
    try:
        if data.startswith(_RIFF) and (claimed := sniffing.claimed_size_wh(data)) is not None:
            return _taken(claimed, options, (_TRANSPARENT if sniffing.webp_has_alpha(data) else _BY_FORMAT)["WEBP"])
        if data.startswith(STARTS) and (unpacking := unpacking_bytes(data, options)) is not None:
            return unpacking
        with Image.open(io.BytesIO(data)) as image:
            return _taken(image.size, options, _bytes_a_pixel(image, options))
    except Exception:  # noqa: BLE001 - what cannot be opened is told by who decodes it
        return 0


def _taken(size_wh: tuple[int, int], options: DecodeOptions, bytes_a_pixel: float) -> int:
    pixels = size_wh[0] * size_wh[1]
    return int(pixels * bytes_a_pixel) if pixels <= options.max_pixels else 0


def _bytes_a_pixel(image: Image.Image, options: DecodeOptions) -> float:
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        if _is_converted(image, options):
            return _CONVERTED
        turned = _TURNED if _orientation(image) > 1 else _JPEG
        return max(turned, _PROGRESSIVE if image.info.get("progressive") else _JPEG)
    name, transparent = image.format or "", "transparency" in image.info or "A" in image.mode
    known: float = _BY_FORMAT.get(name, _BY_MODE.get(image.mode, _UNKNOWN))
    return max(known, _TRANSPARENT.get(name, _BY_MODE["RGBA"])) if transparent else known


def failure(error_type: str, message: str) -> ItemFailure:
    """A failure of the decode stage, its message on one line."""
    return ItemFailure(stage="decode", error_type=error_type, error=" ".join(message.split())[:500])


def _decoded(data: bytes, name: str, options: DecodeOptions) -> Frame:
    """As :func:`decode_image`; raises what decoders raise, and what stands for their complaints."""
    if data.startswith(_RIFF) and (claimed := sniffing.claimed_size_wh(data)) is not None:
        _check_size(claimed, options)
    if data.startswith(STARTS) and (tiff := _scientific_tiff(data, options)) is not None:
        image, notes = tiff
        orientation = image.info.get("orientation", 1)
        pixels, more = to_rgb(image, options)
        return _upright(pixels, [*_name_note("TIFF", name), *notes, *more], orientation, orientation)
    with Image.open(io.BytesIO(data), formats=_formats(data, name)) as image:
        _check_size(image.size, options)
        return _decode(image, data, name, options)


def _formats(data: bytes, name: str) -> tuple[str, ...]:
    named_so = ending_of(name) in ENDINGS_OF_FORMAT["TGA"]
    return (*FORMATS, "TGA") if named_so or data.endswith(_TGA_FOOTER) else FORMATS


def _check_size(size_wh: tuple[int, int], options: DecodeOptions) -> None:
    if size_wh[0] * size_wh[1] > options.max_pixels:
        raise TooManyPixelsError(*size_wh)


def _scientific_tiff(data: bytes, options: DecodeOptions) -> tuple[Image.Image, list[str]] | None:
    try:
        return open_tiff(data, options)
    except (UnsupportedTiffError, TooManyPixelsError):
        raise
    except Exception:  # noqa: BLE001 - a damaged file: Pillow says what is wrong with it
        return None


def _decode(image: Image.Image, data: bytes, name: str, options: DecodeOptions) -> Frame:
    file_format = image.format or ""
    notes = [*_name_note(file_format, name), *_frames_note(image, file_format), *_aspect_note(image)]
    image.seek(0)  # counting frames may have moved
    # Pillow turns single-page TIFFs by itself while loading and drops the tag then, so theirs is asked before. Nobody
    # else's may be: asking a PNG loads it, and after a load that failed the next one passes with missing rows black.
    stored = _orientation(image) if file_format == "TIFF" else 1
    if file_format in ("JPEG", "MPO") and image.mode in ("RGB", "L", "CMYK"):
        pixels, more = (_inks if image.mode == "CMYK" else _jpeg_pixels)(image, data, options)
    else:
        complaints = _complaints(image, data, options)
        image.load()
        shallow, scaled = to_8_bit_image(image, sniffing.bits_per_sample(image, data), options)
        pixels, converted = to_rgb(shallow, options)
        more = complaints + scaled + converted
    remaining = _orientation(image)
    return _upright(pixels, notes + more, max(stored, remaining), remaining)


def _jpeg_pixels(image: Image.Image, data: bytes, options: DecodeOptions) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) in sRGB and notes, of a JPEG whose header Pillow has read.

    Raises:
        ValueError: nothing can be decoded.
        DamagedError: libjpeg complains about the data, and such pixels are not wanted.
    """
    pixels, notes = decode_jpeg(data, image.size[::-1], options)
    if _is_converted(image, options):
        picture = Image.fromarray(pixels if image.mode == "RGB" else pixels[:, :, 0])
        picture.info["icc_profile"] = image.info["icc_profile"]
        pixels, more = to_rgb(picture, options)
        return pixels, notes + more
    return pixels, notes + (["grey converted to RGB"] if image.mode == "L" else [])


def _inks(image: Image.Image, data: bytes, options: DecodeOptions) -> tuple[np.ndarray, list[str]]:
    """The same of a JPEG in CMYK: libjpeg judges, and Pillow, which knows how inks are stored, gives the pixels."""
    _, notes = decode_jpeg(data, image.size[::-1], options, "CMYK")
    with Image.open(io.BytesIO(with_end(data)), formats=["JPEG"]) as whole:
        pixels, more = to_rgb(whole, options)
    return pixels, notes + more


def _is_converted(image: Image.Image, options: DecodeOptions) -> bool:
    """Whether the colours of a JPEG are another profile's than sRGB, or are noted to be."""
    profile = image.info.get("icc_profile")
    if not profile:
        return False
    return options.colour == "stored" or not is_srgb(profile, image.mode)


def _complaints(image: Image.Image, data: bytes, options: DecodeOptions) -> list[str]:
    """About what Pillow decodes without a word; raises DamagedError as :func:`_jpeg_pixels`."""
    if image.format == "PNG":
        damage, notes = png.complaint(data)
        return notes + options.tolerated(damage)
    return []


def _upright(pixels: np.ndarray, notes: list[str], stored: int, remaining: int) -> Frame:
    """Apply what is left of an EXIF orientation, and note the stored one."""
    if stored > 1:
        notes = [*notes, f"rotated by EXIF orientation {stored}"]
    if remaining > 1:
        pixels = from_exif(pixels, remaining)
    return Frame(0, None, np.require(pixels, np.uint8, ["C", "W"]), (pixels.shape[0], pixels.shape[1]), tuple(notes))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _name_note(file_format: str, name: str) -> list[str]:
    ending = ending_of(name)
    if ending not in _KNOWN_ENDINGS or ending in ENDINGS_OF_FORMAT.get(file_format, {ending}):
        return []
    return [f"named .{ending} but is {file_format}"]


def _frames_note(image: Image.Image, file_format: str) -> list[str]:
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - the first frame may be whole where a later one is broken
        return ["animated: first frame, the others are broken"]
    if frames == 1:
        return []
    kind = {"TIFF": "multi-page: first of {} pages", "MPO": "multi-picture: first of {} pictures"}
    return [kind.get(file_format, "animated: first of {} frames").format(frames)]


def _aspect_note(image: Image.Image) -> list[str]:
    """Where the stored densities say that pixels are not square: columns and rows per the same length differ."""
    across, down = image.info.get("aspect") or image.info.get("jfif_density") or image.info.get("dpi") or (1, 1)
    if not across or not down or 0.99 < across / down < 1.01:
        return []
    return [f"pixels are not square ({down:g}:{across:g}): shown as stored"]


def _failure_of(error: Exception, data: bytes, options: DecodeOptions) -> ItemFailure:
    if isinstance(error, TooManyPixelsError):
        size = f"{error.width} x {error.height} = {error.width * error.height} pixels"
        return failure("TooManyPixels", f"the header promises {size}; the limit is {options.max_pixels}")
    if isinstance(error, UnsupportedTiffError):
        return failure("UnsupportedFormat", f"{error} is not supported")
    if isinstance(error, DamagedError):
        kind, what = ("TruncatedImage", "end too early") if error.is_cut_off else ("CorruptImage", "are damaged")
        return failure(kind, f"the image data {what} ({error})")
    return _unidentified(data) if isinstance(error, Image.UnidentifiedImageError) else _broken(error)


def _unidentified(data: bytes) -> ItemFailure:
    if data.startswith(STARTS):
        with contextlib.suppress(Exception):  # a header that tifffile cannot read either is damaged
            return failure("UnsupportedFormat", f"{describe_tiff(data)} is not supported")
    what = sniffing.describe(data)
    if what.is_image:
        return failure("UnsupportedFormat", f"{what.words} cannot be decoded")
    return failure("NotAnImage", f"not an image: {what.words}")


def _broken(error: Exception) -> ItemFailure:
    words = str(error) or type(error).__name__
    truncated = any(hint in words.lower() for hint in ("truncated", "unexpected end", "not enough data"))
    if truncated or isinstance(error, EOFError):
        return failure("TruncatedImage", f"the image data end too early ({sniffing.without_addresses(words)})")
    if isinstance(error, MemoryError):
        return failure("CorruptImage", "decoding it needs more memory than there is")
    return failure("CorruptImage", f"the image data are damaged ({sniffing.without_addresses(words)})")
