"""PNGs whose pixels are sound but for a chunk that has nothing to do with them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


def complaint(data: bytes) -> tuple[str | None, list[str]]:
    """What is wrong with the chunks that hold the pixels, None if nothing is; and notes.

    Pillow stops reading where the picture is full, before the last checksum; libpng does not.
    """
    for kind, start, end in _chunks(data):
        if kind == b"IEND":
            return None, []
        if end > len(data):
            break
        if kind in _PIXELS and not _is_sound(data, start, end):
            return f"the checksum of chunk {kind.decode()} is wrong", []
    return None, ["the end chunk is missing: read as if it were there"]


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of every chunk that begins in the file."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def _is_sound(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def without_extras(data: bytes) -> tuple[bytes, list[str]] | None:
    """The file without texts and without damaged chunks that say nothing about pixels; None if that changes nothing.

    Args:
        data: a PNG that a decoder refused: for a wrong checksum, for instance, or for texts and profiles larger than
            it wants to unpack.

    Returns:
        The shorter file, and a note for each kind of chunk that was left out.
    """
    if not data.startswith(SIGNATURE):
        return None
    kept, dropped, reached = [SIGNATURE], dict[bytes, str](), len(SIGNATURE)
    for kind, start, reached in _chunks(data):
        if kind in _PIXELS:
            kept.append(data[start:reached])
        elif reached <= len(data) and not _is_sound(data, start, reached):
            dropped[kind] = "its checksum is wrong"
        elif kind in _TEXTS:
            dropped[kind] = "texts are not needed"
        elif kind == b"iCCP":
            dropped[kind] = "the decoder refuses the file with it"
        else:
            kept.append(data[start:reached])
    kept.append(data[reached:])
    if not dropped:
        return None
    notes = [f"chunk {kind.decode('latin-1')!r} left out: {why}" for kind, why in dropped.items()]
    return b"".join(kept), notes
