"""PNGs whose pixels are whole are decoded, whatever else is in them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.media.images import decode_image
from tests import corpus

WHOLE = corpus.encoded(Image.fromarray(corpus.scene()), "PNG")


def chunk(kind: bytes, body: bytes, *, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(*chunks: bytes) -> bytes:
    """The whole file with chunks after its header (33 bytes)."""
    return WHOLE[:33] + b"".join(chunks) + WHOLE[33:]


ODD = {
    "a packed text of 3 MB": (with_chunk(chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(3 << 20)))), "zTXt"),
    "100 MB of texts": (with_chunk(*[chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(1 << 20)))] * 100), "zTXt"),
    "an international text": (with_chunk(chunk(b"iTXt", b"t\0\1\0\0\0" + zlib.compress(bytes(3 << 20)))), "iTXt"),
    "a profile of 3 MB": (with_chunk(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20)))), "iCCP"),
    "a wrong checksum of the time": (with_chunk(chunk(b"tIME", b"\x07\xe9\1\1\1\1\1", checksum=1)), "tIME"),
    "a wrong checksum of a profile": (with_chunk(chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x"), checksum=1)), "iCCP"),
    "a wrong checksum of an unknown chunk": (with_chunk(chunk(b"prVt", b"x", checksum=1)), "prVt"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_says_nothing_about_pixels_is_left_out_with_a_note(name: str) -> None:
    data, kind = ODD[name]
    result = decode_image(data)
    assert result.failure is None, result.failure
    np.testing.assert_array_equal(result.image_rgb_hwc_u8, corpus.scene())
    assert [note for note in result.notes if note.startswith(f"chunk {kind!r} left out")]


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_the_pixels_is_damage(kind: bytes) -> None:
    at = WHOLE.index(kind)
    length = int.from_bytes(WHOLE[at - 4 : at], "big")
    end = at + 4 + length
    broken = WHOLE[:end] + b"\0\0\0\0" + WHOLE[end + 4 :]
    assert decode_image(broken).failure is not None


def test_a_file_that_lacks_nothing_but_its_end_is_whole() -> None:
    result = decode_image(WHOLE[:-12])
    assert result.failure is None, result.failure
    np.testing.assert_array_equal(result.image_rgb_hwc_u8, corpus.scene())
    assert result.notes == ("the end chunk is missing: read as if it were there",)


def test_damaged_pixels_stay_damaged_beside_a_text_that_is_too_large() -> None:
    data = bytearray(ODD["a packed text of 3 MB"][0])
    data[-60:-40] = bytes(20)
    assert decode_image(bytes(data)).failure is not None
