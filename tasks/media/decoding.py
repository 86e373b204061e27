"""One door for images and videos: an entry becomes frames, or the failure that stands in their place.

The two halves can run in two stages of a worker: :func:`fetch_entry` waits for the store, :func:`decode_fetched`
computes. (Large videos are the exception: their bytes come while decoding.)

Reads are pinned to the etag of the listing where it stated one: an object that was replaced since then is a failed
item, never a mixture of two files. What the store refuses for one item becomes an :class:`ItemFailure` of stage
``fetch``.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from infra.errors import DatasetError, StoreError, UsageError
from infra.redaction import redact
from infra.store import Store, open_store
from tasks.media.images import Frame, decode_image, failure, no_frame
from tasks.media.options import MAX_FILE_BYTES, DecodeOptions
from tasks.media.reading import Location, fetch_failure, open_window, raise_trouble
from tasks.media.video import decode_video
from tasks.media.video_gaps import VideoGap
from tasks.records import MISSING_ETAG, Entry, ItemFailure

_DEFAULTS = DecodeOptions()
Fetched = bytes | BinaryIO | ItemFailure


class EntryReader:
    """Reads entries of any mixture of stores; opens one store per root when first asked. Safe to use from many threads.

    Args:
        open_root: makes the store of a root URI.
    """

    def __init__(self, open_root: Callable[[str], Store] = open_store) -> None:
        self._open_root = open_root
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def num_retries(self) -> int:
        """Transient failures that reading has repeated so far, over all stores."""
        with self._lock:
            counts: list[dict[str, int]] = [getattr(s, "retry_counts", dict)() for s in self._stores.values()]
        return sum(sum(count.values()) for count in counts)

    def store_at(self, root: str) -> Store:
        """The store of a root, one per process and root."""
        with self._lock:
            if root not in self._stores:
                self._stores[root] = self._open_root(root)
            return self._stores[root]

    def fetch(self, entry: Entry, max_bytes: int = MAX_FILE_BYTES) -> bytes | ItemFailure:
        """All bytes of an entry, or why there are none. Never raises for what the store answers.

        Args:
            max_bytes: a larger entry is a failure and is not read. Where the listing states no size, or none that the
                store confirms, the store is asked for it first.

        Raises:
            StoreOutage: the store did not answer for as long as it is waited for.
        """
        try:
            where = Location.of(entry)
            store = self.store_at(where.root)
            size = where.length if where.length is not None else entry.size_bytes
            if where.length is None and (size <= 0 or where.etag is None):
                size = store.info(where.key).size_bytes
            if size > max_bytes:
                words = f"the file has {size} bytes; the limit is {max_bytes}"
                return ItemFailure(stage="fetch", error_type="TooManyBytes", error=words)
            if where.length is None:
                return store.get(where.key, etag=where.etag)
            return store.read_range(where.key, where.offset, where.length, etag=where.etag)
        except (StoreError, UsageError) as error:
            return fetch_failure(error)

    def open(self, entry: Entry) -> BinaryIO:
        """A seekable reader of an entry's bytes: small files at once, large ones in blocks as they are needed.

        Raises:
            StoreError: here or at any later read; ObjectChanged when the object is replaced while it is read.
        """
        where = Location.of(entry)
        store = self.store_at(where.root)
        length, etag = where.length, where.etag
        if length is None:
            length = entry.size_bytes
            if length <= 0 or etag is None:
                info = store.info(where.key)
                length, etag = info.size_bytes, info.etag
        return open_window(store, where, length, etag)


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
        yield no_frame(entry.first_frame, fetched)
    elif entry.media == "image":
        data = fetched if isinstance(fetched, bytes) else fetched.read()
        yield decode_image(data, name=entry.uri, options=options)
    else:
        source = io.BytesIO(fetched) if isinstance(fetched, bytes) else fetched
        with source:
            yield from _video_frames(entry, source, options)


def decode_entry(entry: Entry, reader: EntryReader, options: DecodeOptions) -> Iterator[Frame]:
    """Fetch and decode in one go."""
    return decode_fetched(entry, fetch_entry(entry, reader, options), options)


def labelled_pixels(uri: str, frame: int | None, size_hw: tuple[int, int], reader: EntryReader) -> np.ndarray:
    """(H, W, 3) uint8 of a labelled image, or of a frame of a video.

    Raises:
        DatasetError: it cannot be read, or is not of the size that its labels are for.
    """
    entry, named = Entry(uri, MISSING_ETAG, 0, "image"), uri if frame is None else f"{uri}#{frame}"
    if frame is not None:
        entry = replace(entry, media="video", first_frame=0, end_frame=frame + 1)
    why = "there is no such frame"
    for found in decode_entry(entry, reader, DecodeOptions()):
        if found.failure is not None:
            why = found.failure.error
        elif found.frame == (frame or 0) and found.image_rgb_hwc_u8 is not None:
            if found.size_hw == size_hw:
                return found.image_rgb_hwc_u8
            raise DatasetError(
                f"{named} is {found.size_hw}, its labels are for {size_hw}",
                hint="Was the image replaced, or are the labels those of another one?",
            )
    raise DatasetError(f"{named} cannot be read: {why}", hint="Leave it out, or mend it.")


def _video_frames(entry: Entry, source: BinaryIO, options: DecodeOptions) -> Iterator[Frame]:
    reached = entry.first_frame
    try:
        for item in decode_video(source, entry, options):
            raise_trouble(source)
            if isinstance(item, VideoGap):
                yield no_frame(item.first, failure(item.error_type, item.message), item.from_s)
                reached = item.first + 1 if item.last is None else item.last + 1
            else:
                height, width = item.rgb_hwc_u8.shape[:2]
                yield Frame(item.index, item.pts_s, item.rgb_hwc_u8, (height, width), item.notes)
                reached = item.index + 1
        raise_trouble(source)
    except StoreError as error:
        yield no_frame(reached, fetch_failure(error))
