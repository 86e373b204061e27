"""Bytes of an image file -> RGB pixels, whatever the file claims to be.

The content decides, never the name: a JPEG called ``.png`` is decoded and noted. Pixels are those of the source,
upright: EXIF rotation is applied, transparency is composited on white, deeper samples are scaled to 8 bits by a fixed
rule. What had to be done is said in ``notes``. A file that can't be decoded completely gives an :class:`ItemFailure`,
not half an image.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from tasks.media import sniffing
from tasks.media.orientation import from_exif
from tasks.media.pixels import to_rgb
from tasks.records import ItemFailure

MAX_PIXELS = 178_956_970  # 512 MiB of RGB; where Pillow itself refuses

# Only decoders that read pixels: Pillow also knows formats that start programs (EPS) or hold other files (ICO, FPX).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")

_ORIENTATION_TAG = 0x0112
_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "GIF": {".gif"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"},
    "JPEG2000": {".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"},
    "AVIF": {".avif", ".avifs"},
}
_KNOWN_EXTENSIONS = frozenset[str]().union(*_EXTENSIONS.values())

# Pillow's own limit is one number for the whole process and warns on stderr; ours is a parameter, checked per file.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
Image.init()  # all decoders now, not at the first image of some thread
with contextlib.suppress(OSError, AttributeError):
    # libtiff writes its complaints to the process's stderr; they come as exceptions, too.
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image in memory.

    Args:
        rgb_hwc_u8: (H, W, 3) uint8, C-contiguous, writable, sRGB as stored (colour profiles are not applied).
        notes: what decoding had to do, in words; empty for a plain RGB file.
    """

    rgb_hwc_u8: np.ndarray
    notes: tuple[str, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rgb_hwc_u8.shape[0], self.rgb_hwc_u8.shape[1]


def decode_image(data: bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> DecodedImage | ItemFailure:
    """Decode one image file completely. Never raises for what the bytes hold, never prints.

    Args:
        data: the whole file.
        name: the item's uri; only its extension is looked at, to note where it does not fit the content.
        max_pixels: files whose *header* promises more are refused before anything is decoded.

    Returns:
        The pixels, or the failure (stage ``decode``) with one of the types EmptyFile, NotAnImage, UnsupportedFormat,
        TooManyPixels, TruncatedImage, CorruptImage.
    """
    if not data:
        return failure("EmptyFile", "the file is empty (0 bytes)")
    claimed = sniffing.claimed_size_wh(data)
    if claimed is not None and claimed[0] * claimed[1] > max_pixels:
        return _too_many_pixels(claimed, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return _too_many_pixels(image.size, max_pixels)
            return _decode(image, data, name)
    except Image.UnidentifiedImageError:
        return _unidentified(data)
    except Exception as error:  # noqa: BLE001 - hostile bytes make decoders raise anything; one item must not stop a shard
        return _broken(error)


def failure(error_type: str, message: str) -> ItemFailure:
    """A failure of the decode stage, its message on one line."""
    return ItemFailure(stage="decode", error_type=error_type, error=" ".join(message.split())[:500])


def _decode(image: Image.Image, data: bytes, name: str) -> DecodedImage:
    file_format = image.format or ""
    notes = []
    extension = PurePosixPath(name).suffix.lower()
    if extension in _KNOWN_EXTENSIONS and extension not in _EXTENSIONS.get(file_format, {extension}):
        notes.append(f"named {extension} but is {file_format}")
    notes += _frames_note(image, file_format)
    image.seek(0)  # counting frames may have moved
    # Pillow turns single-page TIFFs by itself while loading and drops the tag then, so theirs is asked before. Nobody
    # else's may be: asking a PNG loads it, and after a load that failed the next one passes with missing rows black.
    stored = _orientation(image) if file_format == "TIFF" else 1
    image.load()
    remaining = _orientation(image)
    pixels, colour_notes = to_rgb(image, sniffing.bits_per_sample(image, data))
    notes += colour_notes
    if max(stored, remaining) > 1:
        notes.append(f"rotated by EXIF orientation {max(stored, remaining)}")
        pixels = from_exif(pixels, remaining)
    return DecodedImage(rgb_hwc_u8=np.require(pixels, np.uint8, ["C", "W"]), notes=tuple(notes))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _frames_note(image: Image.Image, file_format: str) -> list[str]:
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - the first frame may be whole where a later one is broken
        return ["animated: first frame, the others are broken"]
    if frames == 1:
        return []
    kind = {"TIFF": "multi-page: first of {} pages", "MPO": "multi-picture: first of {} pictures"}
    return [kind.get(file_format, "animated: first of {} frames").format(frames)]


def _too_many_pixels(size_wh: tuple[int, int], max_pixels: int) -> ItemFailure:
    width, height = size_wh
    return failure(
        "TooManyPixels", f"the header promises {width} x {height} = {width * height} pixels; the limit is {max_pixels}"
    )


def _unidentified(data: bytes) -> ItemFailure:
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
