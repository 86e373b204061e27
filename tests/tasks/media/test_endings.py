"""One table of endings: what listings take is decoded, what is decoded is taken by them, and the page says the same."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from tasks.media.decoding import DecodeOptions, decode_fetched
from tasks.media.endings import ENDINGS_OF_FORMAT, IMAGE_ENDINGS, NOT_READ, VIDEO_ENDINGS, kind_of, kinds_of
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests import corpus

PAGE = Path(__file__).parents[3] / "docs" / "media.md"
# How Pillow writes what files of an ending hold, where that is not what it writes for the format's name.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("j2k", "jpc", "j2c"), ("JPEG2000", {"no_jp2": True})),
    "mpo": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}),
    "avifs": ("AVIF", {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}),
    "apng": ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}),
}
MODES = {"pgm": "L", "pbm": "1", "pfm": "F"}


@pytest.mark.parametrize("ending", sorted(IMAGE_ENDINGS))
def test_every_image_ending_that_listings_take_is_decoded(ending: str) -> None:
    own = next(name for name, endings in ENDINGS_OF_FORMAT.items() if ending in endings)
    file_format, options = WRITTEN.get(ending, (own, {}))
    picture = Image.fromarray(corpus.scene((48, 64))).convert(MODES.get(ending, "RGB"))
    data = corpus.encoded(picture, file_format, **options)
    name = f"a.{ending}"
    assert kind_of(name) == kind_of(name.upper()) == "image"
    entry = Entry(name, unknown_etag(len(data)), len(data), "image")
    (frame,) = decode_fetched(entry, data, DecodeOptions())
    assert frame.failure is None
    assert frame.size_hw == (48, 64)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format in (own, "DIB", "JPEG", "MPO")
    assert not any("named" in note for note in frame.notes)


@pytest.mark.parametrize(("row", "endings"), [("images", IMAGE_ENDINGS), ("videos", VIDEO_ENDINGS)])
def test_the_page_names_the_endings_of_the_table(row: str, endings: frozenset[str]) -> None:
    line = re.search(rf"^\| {row} \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert line is not None
    assert set(line[1].replace("·", " ").split()) == endings


def test_endings_of_broadcast_phones_and_science_are_taken_and_no_ending_is_of_two_kinds() -> None:
    names = "ts mts m2ts vob ogv mxf 3g2 mpo j2k jpf jpx jpc pfm avifs tga".split()
    kinds = ["video"] * 7 + ["image"] * 8
    assert [kind_of(f"x/a.{ending}") for ending in names] == kinds
    assert kinds_of(pa.array([f"x/a.{ending}" for ending in names])).to_pylist() == kinds
    assert not (IMAGE_ENDINGS & VIDEO_ENDINGS or (IMAGE_ENDINGS | VIDEO_ENDINGS) & NOT_READ)
