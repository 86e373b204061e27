"""One door for images and videos: an entry becomes frames, or the failure that stands in their place.

The two halves can run in two stages of a worker: :func:`fetch_entry` waits for the store, :func:`decode_fetched`
computes. (Large videos are the exception: their bytes come while decoding.)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from infra.errors import StoreError, UsageError
from infra.redaction import redact
from tasks.media.images import decode_image, failure
from tasks.media.options import DecodeOptions
from tasks.media.reading import EntryReader, fetch_failure, raise_trouble
from tasks.media.video import decode_video
from tasks.media.video_gaps import VideoGap
from tasks.records import Entry, ItemFailure

_DEFAULTS = DecodeOptions()
Fetched = bytes | BinaryIO | ItemFailure


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

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return 0 if self.image_rgb_hwc_u8 is None else self.image_rgb_hwc_u8.nbytes


def fetch_entry(entry: Entry, reader: EntryReader, options: DecodeOptions = _DEFAULTS) -> Fetched:
    """The bytes of an image, a seekable reader of a video, or the failure. Never raises for what the store answers.

    What listing showed to be unreadable (a broken tar, a shard that is named and not there) is not asked for again,
    and an image that is larger than the limit is not asked for at all.
    """
    if entry.problem is not None:
        return ItemFailure("inventory", "ListedUnreadable", " ".join(redact(entry.problem).split())[:500])
    if entry.media == "image":
        return reader.fetch(entry, options.max_file_bytes)
    try:
        return reader.open(entry)
    except (StoreError, UsageError) as error:
        return fetch_failure(error)


def decode_fetched(entry: Entry, fetched: Fetched, options: DecodeOptions) -> Iterator[Frame]:
    """The frames of an entry in order, a failure for each run that is missing. At least one, unless a stride skips all.

    Nothing is raised for what the data or the store do, but an outage of the whole store; a reader is closed at the
    end.
    """
    if isinstance(fetched, ItemFailure):
        yield _failed(entry.first_frame, fetched)
    elif entry.media == "image":
        data = fetched if isinstance(fetched, bytes) else fetched.read()
        yield _image_frame(entry, data, options)
    else:
        source = io.BytesIO(fetched) if isinstance(fetched, bytes) else fetched
        with source:
            yield from _video_frames(entry, source, options)


def decode_entry(entry: Entry, reader: EntryReader, options: DecodeOptions) -> Iterator[Frame]:
    """Fetch and decode in one go."""
    return decode_fetched(entry, fetch_entry(entry, reader, options), options)


def _image_frame(entry: Entry, data: bytes, options: DecodeOptions) -> Frame:
    image = decode_image(data, name=entry.uri, options=options)
    if isinstance(image, ItemFailure):
        return _failed(0, image)
    return Frame(0, None, image.rgb_hwc_u8, image.size_hw, image.notes)


def _video_frames(entry: Entry, source: BinaryIO, options: DecodeOptions) -> Iterator[Frame]:
    reached = entry.first_frame
    try:
        for item in decode_video(source, entry, options):
            raise_trouble(source)
            if isinstance(item, VideoGap):
                yield _failed(item.first, failure(item.error_type, item.message), item.from_s)
                reached = item.first + 1 if item.last is None else item.last + 1
            else:
                height, width = item.rgb_hwc_u8.shape[:2]
                yield Frame(item.index, item.pts_s, item.rgb_hwc_u8, (height, width), item.notes)
                reached = item.index + 1
        raise_trouble(source)
    except StoreError as error:
        yield _failed(reached, fetch_failure(error))


def _failed(frame: int, why: ItemFailure, pts_s: float | None = None) -> Frame:
    return Frame(frame=frame, pts_s=pts_s, image_rgb_hwc_u8=None, size_hw=None, failure=why)
