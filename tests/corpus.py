"""Files that datasets really contain and that break pipelines, made on the spot, each with what must come of it.

``write_corpus(folder)`` writes them all and returns the cases by file name, so that an end-to-end test can compare
every row with what its case promises.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE_HW = (48, 64)


@dataclass(frozen=True, slots=True)
class Case:
    """One file and what decoding it must give.

    ``colour`` is the expected mean RGB for files that are one flat colour; ``note`` and ``words`` are parts of the note
    and of the error line.
    """

    name: str
    data: bytes
    status: str = "ok"
    size_hw: tuple[int, int] | None = SIZE_HW
    note: str = ""
    error_type: str = ""
    words: str = ""
    colour: tuple[int, int, int] | None = None
    tolerance: int = 4


def scene(size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """A picture with no symmetry, (H, W, 3) uint8: a wrong turn or a swapped channel changes it."""
    rows, columns = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    red = rows * 255 // max(1, size_hw[0] - 1)
    green = columns * 255 // max(1, size_hw[1] - 1)
    picture = np.stack([red, green, np.full_like(red, 40)], axis=2).astype(np.uint8)
    picture[: size_hw[0] // 4, : size_hw[1] // 4] = (250, 250, 20)
    return picture


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The bytes Pillow writes for an image."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def flat(mode: str, colour: Any, size_hw: tuple[int, int] = SIZE_HW) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, (size_hw[1], size_hw[0]), colour)


def good_jpeg(size_hw: tuple[int, int] = SIZE_HW) -> bytes:
    """A plain, whole JPEG."""
    return encoded(Image.fromarray(scene(size_hw)), "JPEG", quality=90)


def png_of(size_wh: tuple[int, int], bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand (Pillow can't write 16-bit colour); ``rows`` hold the filter byte of each row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", *size_wh, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit_png(rgb: tuple[int, int, int]) -> bytes:
    """A 16-bit RGB PNG of one colour (values 0..65535)."""
    row = b"\x00" + struct.pack(">HHH", *rgb) * SIZE_HW[1]
    return png_of((SIZE_HW[1], SIZE_HW[0]), 16, 2, row * SIZE_HW[0])


def bomb_png(side: int = 30_000) -> bytes:
    """A PNG of a few hundred kilobytes whose header promises ``side`` x ``side`` pixels (all of them black, 1 bit)."""
    row_bytes = 1 + (side + 7) // 8
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(bytes(row_bytes)) for _ in range(side)) + compressor.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def rotated(file_format: str, orientation: int) -> bytes:
    """A file whose pixels must be turned by its EXIF orientation to look like :func:`scene`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    picture = Image.fromarray(scene())
    stored = picture.transpose(undo[orientation]) if orientation in undo else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    if file_format == "WEBP":
        options = {"lossless": True}
    return encoded(stored, file_format, exif=exif, **options)


def animated(file_format: str, frames: int) -> bytes:
    """An animation whose first frame is red and whose others are blue."""
    pictures = [flat("RGB", (250, 10, 10))] + [flat("RGB", (10, 10, 200 + i)) for i in range(frames - 1)]
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    return encoded(pictures[0], file_format, save_all=True, append_images=pictures[1:], duration=50, **options)


def _transparent_palette() -> bytes:
    image = flat("P", 0)
    image.putpalette([200, 30, 30, 30, 200, 30])
    return encoded(image, "PNG", transparency=0)


def _opaque_palette() -> bytes:
    image = flat("P", 1)
    image.putpalette([200, 30, 30, 30, 200, 30])
    return encoded(image, "PNG")


def good_cases() -> list[Case]:
    """Odd files that must still give pixels."""
    rgb = (200, 60, 30)
    return [
        Case("plain.jpg", good_jpeg()),
        Case("really-a-jpeg.png", good_jpeg(), note="named .png but is JPEG"),
        Case("no-extension", good_jpeg()),
        Case("upper.JPG", good_jpeg()),
        Case("cmyk.jpg", encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), note="CMYK", colour=(255, 0, 0)),
        Case("cmyk.tif", encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), note="CMYK", colour=(255, 0, 0)),
        Case("grey.jpg", encoded(flat("L", 90), "JPEG"), note="grey", colour=(90, 90, 90)),
        Case("grey.png", encoded(flat("L", 90), "PNG"), note="grey", colour=(90, 90, 90)),
        Case("one-bit.png", encoded(flat("1", 1), "PNG"), note="grey", colour=(255, 255, 255)),
        Case("grey-alpha.png", encoded(flat("LA", (0, 51)), "PNG"), note="white", colour=(204, 204, 204)),
        Case("rgba.png", encoded(flat("RGBA", (255, 0, 0, 0)), "PNG"), note="white", colour=(255, 255, 255)),
        Case("rgba-half.png", encoded(flat("RGBA", (255, 0, 0, 51)), "PNG"), note="white", colour=(255, 204, 204)),
        Case("rgba-opaque.png", encoded(flat("RGBA", (*rgb, 255)), "PNG"), colour=rgb),
        Case("rgba.webp", encoded(flat("RGBA", (255, 0, 0, 0)), "WEBP"), note="white", colour=(255, 255, 255)),
        Case("palette.png", _opaque_palette(), colour=(30, 200, 30)),
        Case("palette-transparent.png", _transparent_palette(), note="white", colour=(255, 255, 255)),
        Case("rgb-transparent.png", encoded(flat("RGB", rgb), "PNG", transparency=rgb), colour=(255, 255, 255)),
        Case("deep-grey.png", encoded(flat("I;16", 51_400), "PNG"), note="16-bit", colour=(200, 200, 200)),
        Case("deep-grey.tif", encoded(flat("I;16", 51_400), "TIFF"), note="16-bit", colour=(200, 200, 200)),
        Case("deep-rgb.png", sixteen_bit_png((51_400, 0, 65_535)), note="16-bit", colour=(200, 0, 255)),
        Case(
            "float.tif",
            encoded(Image.fromarray(np.linspace(-1, 3, 48 * 64, dtype=np.float32).reshape(48, 64)), "TIFF"),
            note="32-bit float",
            colour=(127, 127, 127),
        ),
        Case("animated.gif", animated("GIF", 5), note="animated: first of 5 frames", colour=(250, 10, 10)),
        Case("animated.webp", animated("WEBP", 4), note="animated: first of 4 frames", colour=(250, 10, 10)),
        Case("animated.png", animated("PNG", 3), note="animated: first of 3 frames", colour=(250, 10, 10)),
        Case("pages.tif", animated("TIFF", 3), note="multi-page: first of 3 pages", colour=(250, 10, 10)),
        Case("plain.bmp", encoded(flat("RGB", rgb), "BMP"), colour=rgb),
        Case("plain.webp", encoded(flat("RGB", rgb), "WEBP"), colour=rgb),
        Case("plain.jp2", encoded(flat("RGB", rgb), "JPEG2000"), colour=rgb),
        Case("plain.avif", encoded(flat("RGB", rgb), "AVIF"), colour=rgb),
        Case("plain.ppm", encoded(flat("RGB", rgb), "PPM"), colour=rgb),
        Case("lzw.tif", encoded(flat("RGB", rgb), "TIFF", compression="tiff_lzw"), colour=rgb),
        Case("one-pixel.png", encoded(flat("RGB", rgb, (1, 1)), "PNG"), size_hw=(1, 1), colour=rgb),
        Case("one-pixel.jpg", encoded(flat("RGB", rgb, (1, 1)), "JPEG"), size_hw=(1, 1), colour=rgb),
        Case("wide.png", encoded(flat("RGB", rgb, (1, 20_000)), "PNG"), size_hw=(1, 20_000), colour=rgb),
        Case("tall.jpg", encoded(flat("RGB", rgb, (20_000, 1)), "JPEG"), size_hw=(20_000, 1), colour=rgb),
        *[Case(f"turned-{n}.jpg", rotated("JPEG", n), note=f"orientation {n}" if n > 1 else "") for n in range(1, 9)],
        Case("turned-nonsense.jpg", rotated("JPEG", 99)),
        Case("with space.jpg", good_jpeg()),
        Case("hash#mark.jpg", good_jpeg()),
        Case("question?mark.jpg", good_jpeg()),
        Case("percent%41.jpg", good_jpeg()),
        Case("plus+and&and=.jpg", good_jpeg()),
        Case("ünïcödé-日本-😀.jpg", good_jpeg()),
    ]


def bad_cases() -> list[Case]:
    """Files that can give no pixels, with the kind of failure and words its message must hold."""

    def bad(name: str, data: bytes, error_type: str, words: str) -> Case:
        return Case(name, data, status="failed", size_hw=None, error_type=error_type, words=words)

    whole = good_jpeg((240, 320))
    png = encoded(Image.fromarray(scene((240, 320))), "PNG")
    return [
        bad("empty.jpg", b"", "EmptyFile", "empty"),
        bad("empty.png", b"", "EmptyFile", "empty"),
        bad("truncated.jpg", whole[: len(whole) // 2], "TruncatedImage", "too early"),
        bad("truncated-in-header.jpg", whole[:10], "TruncatedImage", "too early"),
        bad("truncated.png", png[: len(png) // 2], "TruncatedImage", "too early"),
        bad("truncated.webp", encoded(Image.fromarray(scene((240, 320))), "WEBP")[:300], "CorruptImage", "damaged"),
        bad("truncated.tif", encoded(flat("RGB", 7), "TIFF", compression="tiff_lzw")[:200], "", "TIFF"),
        bad("damaged.png", png[:200] + b"\xff" * 400 + png[600:], "CorruptImage", "damaged"),
        bad("page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "NotAnImage", "HTML"),
        bad("answer.jpg", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "NotAnImage", "XML error"),
        bad("drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "UnsupportedFormat", "SVG"),
        bad("text.jpg", b"this is not an image\n" * 20, "NotAnImage", "plain text"),
        bad("record.jpg", b'{"error": "not found"}', "NotAnImage", "JSON"),
        bad("zeros.jpg", bytes(5_000), "NotAnImage", "zero bytes"),
        bad("random.jpg", np.random.default_rng(7).bytes(3_000), "NotAnImage", "unknown"),
        bad("document.jpg", b"%PDF-1.7\n" + b"x" * 100, "NotAnImage", "PDF"),
        bad("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "UnsupportedFormat", "PostScript"),
        bad("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "NotAnImage", "Git LFS"),
        bad("phone.jpg", b"\x00\x00\x00\x18ftypheic" + bytes(200), "UnsupportedFormat", "HEIC"),
        bad("bomb.png", bomb_png(), "TooManyPixels", "900000000 pixels"),
    ]


def all_cases() -> list[Case]:
    """Every image case, good and bad."""
    return good_cases() + bad_cases()


def write_corpus(folder: Path, keep: Callable[[Case], bool] = lambda case: True) -> dict[str, Case]:
    """Write the cases that ``keep`` accepts into a folder; returns them by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {case.name: case for case in all_cases() if keep(case)}
    for case in chosen.values():
        (folder / case.name).write_bytes(case.data)
    return chosen
