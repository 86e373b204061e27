"""Damaged, odd and foreign images, made on the spot: what libraries open is never called damaged, what a strict decoder
refuses never passes without a word.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tasks.media.decoding import DecodeOptions, Frame, decode_fetched
from tasks.media.endings import ENDINGS_OF_FORMAT
from tasks.media.images import FORMATS
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests import corpus

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "restarts": ("JPEG", {"restart_marker_blocks": 1}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "ppm": ("PPM", {}),
    "jpeg 2000": ("JPEG2000", {}),
    "jpeg 2000 codestream": ("JPEG2000", {"no_jp2": True}),
    "two pictures": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}),
    "animated png": ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}),
    "animated webp": ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}),
    "tiff of pages": ("TIFF", {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}),
    "dib": ("DIB", {}),
    "avif": ("AVIF", {}),
    "tga": ("TGA", {}),
    "packed tga": ("TGA", {"compression": "tga_rle"}),
}
RIGHT_NOTES = ("the end marker is missing", "the end chunk is missing", "chunk ", "libjpeg: ", "progressive without")


def sample(name: str) -> bytes:
    file_format, options = VARIANTS[name]
    noise = np.random.default_rng(5).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    return corpus.encoded(Image.fromarray(noise), file_format, **options)


def ending_of_format(name: str) -> str:
    return min(ENDINGS_OF_FORMAT[VARIANTS[name][0]], key=lambda ending: (ending != VARIANTS[name][0].lower(), ending))


def row(data: bytes, name: str) -> Frame:
    (frame,) = decode_fetched(Entry(name, unknown_etag(len(data)), len(data), "image"), data, DecodeOptions())
    assert (frame.failure is None) == (frame.image_rgb_hwc_u8 is not None)
    return frame


def is_opened_by_its_library(data: bytes) -> bool:
    """Whether Pillow decodes the file; for a JPEG whether libjpeg does so without a warning."""
    try:
        with Image.open(io.BytesIO(data), formats=(*FORMATS, "TGA")) as image:
            image.load()
            is_jpeg = image.format in ("JPEG", "MPO")
    except Exception:  # noqa: BLE001 - damaged files make decoders raise anything
        return False
    try:
        return not is_jpeg or simplejpeg.decode_jpeg(data, "RGB", strict=True) is not None
    except ValueError:
        return False


def damaged(data: bytes, number: int) -> bytes:
    """One of many ways to cut or to change a file."""
    choose = np.random.default_rng(number)
    if number % 2:
        return data[: choose.integers(1, len(data))]
    changed = bytearray(data)
    for place in choose.integers(0, len(data), choose.integers(1, 6)):
        changed[place] = choose.integers(0, 256)
    return bytes(changed)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_its_library_opens_is_ok_and_what_it_refuses_is_not(name: str) -> None:
    data, uri = sample(name), f"a.{ending_of_format(name)}"
    assert row(data, uri).failure is None
    for number in range(60):
        changed = damaged(data, number)
        frame = row(changed, uri)
        if is_opened_by_its_library(changed):
            is_checked = frame.failure is not None and "checksum of chunk" in frame.failure.error  # libpng asks, too
            is_limited = frame.failure is not None and frame.failure.error_type == "TooManyPixels"
            assert frame.failure is None or is_checked or is_limited, (number, frame.failure)
        elif frame.failure is None:
            assert any(note.startswith(RIGHT_NOTES) for note in frame.notes), (number, frame.notes)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_wrong_ending_harms_nobody_and_is_noted(name: str) -> None:
    for ending in ("jpg", "png", "tif", "tga", "bin", "mp4"):
        frame = row(sample(name), f"a.{ending}")
        assert frame.failure is None
        is_right = ending in ENDINGS_OF_FORMAT[VARIANTS[name][0]]
        is_image = any(ending in endings for endings in ENDINGS_OF_FORMAT.values())
        expected = (f"named .{ending} but is {VARIANTS[name][0]}",) if is_image and not is_right else ()
        several = (" of 2 frames", " of 2 pages", " of 2 pictures") if "append_images" in VARIANTS[name][1] else ()
        assert tuple(note for note in frame.notes if not note.endswith(several)) == expected


@pytest.mark.parametrize("ending", sorted(set().union(*ENDINGS_OF_FORMAT.values())))
@pytest.mark.parametrize("data", [b"", b"\0", b"text\n" * 99, bytes(999), b"%PDF-1.7\n", bytes(range(256)) * 9])
def test_what_is_no_image_is_one_failed_row_by_any_name(data: bytes, ending: str) -> None:
    frame = row(data, f"a.{ending}")
    assert frame.failure is not None
    assert frame.failure.error
