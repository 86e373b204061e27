"""What a file really is, from its first bytes: for clear words in failures, and for limits checked before decoding."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from PIL import Image

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}")
_BITS_PER_SAMPLE_TAG = 258

_SIGNATURES: tuple[tuple[int, bytes, bool, str], ...] = (
    # offset, bytes, is an image, words
    (0, b"\xff\xd8\xff", True, "a JPEG whose header is damaged or cut off"),
    (0, b"\x89PNG\r\n\x1a\n", True, "a PNG whose header is damaged or cut off"),
    (0, b"GIF8", True, "a GIF whose header is damaged or cut off"),
    (0, b"II*\x00", True, "a TIFF whose header is damaged or of an unknown kind"),
    (0, b"MM\x00*", True, "a TIFF whose header is damaged or of an unknown kind"),
    (0, b"II+\x00", True, "a BigTIFF whose header is damaged or of an unknown kind"),
    (0, b"MM\x00+", True, "a BigTIFF whose header is damaged or of an unknown kind"),
    (8, b"WEBP", True, "a WebP whose header is damaged or cut off"),
    (0, b"BM", True, "a BMP whose header is damaged or cut off"),
    (4, b"ftypheic", True, "a HEIC image"),
    (4, b"ftypheix", True, "a HEIC image"),
    (4, b"ftypmif1", True, "a HEIF image"),
    (4, b"ftypavif", True, "an AVIF whose header is damaged or cut off"),
    (0, b"\xff\x0a", True, "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL ", True, "a JPEG XL image"),
    (0, b"8BPS", True, "a Photoshop document"),
    (0, b"%!PS", True, "a PostScript document"),
    (0, b"%PDF", False, "a PDF document"),
    (0, b"\x00\x00\x01\x00", True, "an icon file"),
    (4, b"ftyp", False, "an MP4 or QuickTime video"),
    (8, b"AVI ", False, "an AVI video"),
    (0, b"\x1aE\xdf\xa3", False, "a Matroska or WebM video"),
    (0, b"PK\x03\x04", False, "a ZIP archive"),
    (0, b"\x1f\x8b", False, "gzip-compressed data"),
    (257, b"ustar", False, "a tar archive"),
    (0, b"PAR1", False, "a Parquet file"),
    (0, b"version https://git-lfs", False, "a Git LFS pointer, the image itself was not fetched"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """What the bytes look like; ``words`` complete the sentence "this is ..."."""

    is_image: bool
    words: str


def describe(data: bytes) -> Content:
    """The best guess at a file that no image decoder of ours took."""
    for offset, signature, is_image, words in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return Content(is_image, words)
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = head.lower()
    if b"<svg" in lower:
        return Content(True, "an SVG drawing (vectors, not pixels)")
    if lower.startswith((b"<!doctype html", b"<html")) or b"<html" in lower[:256]:
        return Content(False, "an HTML page, perhaps the error page of a download")
    if lower.startswith(b"<?xml") and b"<code>" in lower:
        return Content(False, "an XML error answer of a storage service")
    if lower.startswith(b"<"):
        return Content(False, "XML text")
    if lower.startswith((b"{", b"[")) and _is_text(head):
        return Content(False, "JSON text")
    if not any(data[:4096]):
        return Content(False, "zero bytes only")
    if _is_text(head):
        return Content(False, "plain text")
    return Content(False, "binary data of an unknown kind")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut in two at the end is still text
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(character.isprintable() or character in "\t\r\n\f" for character in text)


def claimed_size_wh(data: bytes) -> tuple[int, int] | None:
    """Columns and rows in a WebP header, None for other files.

    Pillow's WebP reader reserves the whole canvas while opening, before any limit of ours could be asked.
    (WebP container specification: VP8X has 24-bit sizes minus one, VP8L 14-bit minus one, VP8 14-bit.)
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def webp_has_alpha(data: bytes) -> bool:
    """Whether a WebP's header says that some pixels may not be opaque."""
    if data[12:16] == b"VP8X":
        return bool(data[20] & 0x10)
    return data[12:16] == b"VP8L" and bool(data[24] & 0x10)


def bits_per_sample(image: Image.Image, data: bytes) -> int:
    """Bits per sample as stored, where Pillow's mode no longer tells; 8 where nothing says otherwise."""
    if image.format == "PNG" and len(data) > 24:
        return max(8, data[24])  # IHDR: length, type, width, height, bit depth
    if image.format == "TIFF":
        stored = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, 8)
        return max(8, *(stored if isinstance(stored, tuple) else (stored,)))
    if image.format == "PPM":
        return 8 if _pnm_maximum(data) <= 255 else 16
    return 8


def _pnm_maximum(data: bytes) -> int:
    """The largest sample value in the header of a PGM or PPM (width, height, maximum); 255 where there is none."""
    fields = re.sub(rb"#[^\n]*\n", b" ", data[:512]).split(maxsplit=4)
    return (
        int(fields[3]) if len(fields) > 3 and data[:2] in (b"P2", b"P3", b"P5", b"P6") and fields[3].isdigit() else 255
    )


def without_addresses(words: str) -> str:
    """A library's message without memory addresses, so that two runs write equal rows."""
    return _ADDRESS.sub("it", words)
