"""The pixels of items that a report shows, or why there are none: in bounded time, whatever became of the sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from tasks.media.decoding import DecodeOptions, EntryReader, decode_entry
from tasks.records import Entry

MAX_FRAMES_TO_REACH = 600  # of a video that are decoded to get at one: a report may take seconds, not hours

Key = tuple[str, int]
Draw = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]
Picture = np.ndarray | str  # pixels, or why there are none


def pixels_of_items(
    rows: Iterable[dict[str, Any]], entries: dict[tuple[str, int], Entry], options: DecodeOptions, deadline: float
) -> Iterator[tuple[tuple[str, int], Picture]]:
    """The pixels of every row; frames of one piece of a video are decoded in one go."""
    reader = EntryReader()

    def place(row: dict[str, Any]) -> tuple[str, int]:
        entry = entries.get(key_of(row))
        return row["uri"], -1 if entry is None else entry.first_frame

    for _, group in groupby(sorted(rows, key=lambda row: (*place(row), row["frame"])), key=place):
        members = list(group)
        entry = entries.get(key_of(members[0]))
        if time.monotonic() > deadline:
            yield from ((key_of(row), "not read: the report had run out of time") for row in members)
        elif entry is None:
            yield from ((key_of(row), "its plan is not at hand") for row in members)
        else:
            yield from decoded(members, entry, reader, options, deadline)


def decoded(
    rows: list[dict[str, Any]], entry: Entry, reader: EntryReader, options: DecodeOptions, deadline: float
) -> Iterator[tuple[Key, Picture]]:
    """The pixels of items of one entry, or why there are none, each as soon as it is decoded."""
    waiting = {row["frame"]: row for row in rows}
    for row in rows:
        if row["frame"] - entry.first_frame > MAX_FRAMES_TO_REACH:
            yield key_of(waiting.pop(row["frame"])), "too far from a keyframe to be decoded for a report"
    why = "the source has no such frame any more"
    if waiting:
        until = max(waiting) + 1
        piece = entry if entry.media == "image" else replace(entry, end_frame=until)
        for frame in decode_entry(piece, reader, options):
            if frame.failure is not None:
                why = frame.failure.error
                break
            if frame.frame in waiting and frame.image_rgb_hwc_u8 is not None:
                yield key_of(waiting.pop(frame.frame)), frame.image_rgb_hwc_u8
            if not waiting:
                break
            if time.monotonic() > deadline:
                why = "not read: the report had run out of time"
                break
    for row in waiting.values():
        yield key_of(row), why


def key_of(row: Mapping[str, Any]) -> Key:
    """What names an item: uri and frame."""
    return row["uri"], row["frame"]
