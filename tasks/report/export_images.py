"""Images and frames of exported items, as files that trainers open beside the labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tasks.media.decoding import DecodeOptions, EntryReader, decode_entry
from tasks.media.endings import ending_of
from tasks.output.views import Views
from tasks.records import Entry, ItemFailure
from tasks.report.export_files import ItemNames, Missing, Puts
from tasks.report.planned import decoding_of, entries_of

Row = dict[str, Any]
T = TypeVar("T")

COPIED = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp")
"""Endings of files that are copied as they are; other images become PNG, frames of videos JPEG."""
_JPEG_QUALITY = 95


def image_ending(row: Row) -> str:
    """Of the file that an item becomes."""
    if row["media"] == "video":
        return "jpg"
    ending = ending_of(row["uri"])
    return ending if ending in COPIED else "png"


def image_files(views: Views, rows: Sequence[Row], reader: EntryReader) -> Iterator[tuple[Row, bytes | ItemFailure]]:
    """Every row with the bytes of its file, or why there is none.

    Args:
        views: open views of the output.
        rows: of ``items``, sorted by uri and frame, with ``shard_id``.
        reader: shared by all calls.
    """
    yield from _opened(views, rows, reader, _image_file, lambda pixels: encoded(pixels, "JPEG"))


def put_images(
    puts: Puts, names: ItemNames, files: Iterable[tuple[Row, bytes | ItemFailure]], missing: Missing
) -> None:
    """Write files of items where trainers look for the image of a label: the same name under ``images/``."""
    for row, data in files:
        if isinstance(data, ItemFailure):
            missing.add(row, data.error)
        else:
            puts.put(f"images/{names.of(row)}.{image_ending(row)}", data)


def pictures(views: Views, rows: Sequence[Row], reader: EntryReader) -> Iterator[tuple[Row, np.ndarray | ItemFailure]]:
    """Every row with its pixels, (H, W, 3) uint8, or why there are none; arguments as of :func:`image_files`."""
    yield from _opened(views, rows, reader, _pixels, lambda pixels: pixels)


def _opened(
    views: Views,
    rows: Sequence[Row],
    reader: EntryReader,
    image: Callable[[Row, Entry, EntryReader, DecodeOptions], T | ItemFailure],
    frame: Callable[[np.ndarray], T],
) -> Iterator[tuple[Row, T | ItemFailure]]:
    """What becomes of images and of the pixels of frames; those of one piece of a video are decoded at once."""
    entries, options = entries_of(views, rows), decoding_of(views)

    def place(row: Row) -> tuple[str, int]:
        entry = entries.get((row["uri"], row["frame"]))
        return row["uri"], -1 if entry is None else entry.first_frame

    for _, group in groupby(rows, key=place):
        members = list(group)
        entry = entries.get((members[0]["uri"], members[0]["frame"]))
        if entry is None:
            yield from ((row, ItemFailure("fetch", "NoPlan", "its plan is not at hand")) for row in members)
        elif entry.media == "video":
            yield from ((row, found if isinstance(found, ItemFailure) else frame(found))
                        for row, found in _frames(members, entry, reader, options))  # fmt: skip
        else:
            yield from ((row, image(row, entry, reader, options)) for row in members)


def _image_file(row: Row, entry: Entry, reader: EntryReader, options: DecodeOptions) -> bytes | ItemFailure:
    if image_ending(row) == ending_of(row["uri"]):
        return reader.fetch(entry, options.max_file_bytes)
    found = _pixels(row, entry, reader, options)
    return found if isinstance(found, ItemFailure) else encoded(found, "PNG")


def _pixels(row: Row, entry: Entry, reader: EntryReader, options: DecodeOptions) -> np.ndarray | ItemFailure:
    (frame,) = decode_entry(entry, reader, options)
    if frame.image_rgb_hwc_u8 is None:
        return frame.failure or ItemFailure("decode", "NoPixels", "it has no pixels")
    return frame.image_rgb_hwc_u8


def _frames(
    rows: Sequence[Row], entry: Entry, reader: EntryReader, options: DecodeOptions
) -> Iterator[tuple[Row, np.ndarray | ItemFailure]]:
    waiting = {row["frame"]: row for row in rows}
    why = ItemFailure("decode", "NoSuchFrame", "the source has no such frame any more")
    for frame in decode_entry(replace(entry, end_frame=max(waiting) + 1), reader, options):
        why = frame.failure or why
        if frame.frame in waiting and frame.image_rgb_hwc_u8 is not None:
            yield waiting.pop(frame.frame), frame.image_rgb_hwc_u8
    yield from ((row, why) for row in waiting.values())


def encoded(pixels: np.ndarray, file_format: str) -> bytes:
    """(H, W, 3) uint8 as a JPEG or PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, file_format, **({"quality": _JPEG_QUALITY} if file_format == "JPEG" else {}))
    return out.getvalue()
