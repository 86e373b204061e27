"""What was found, drawn by a product's overlay: a JPEG for each image and frame, or an MP4 for each video.

Colours are those of the report: one per class, and where there are tracks one per track, for ever the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import UsageError
from infra.store import Store
from tasks.media.clip_file import ClipFile
from tasks.media.decoding import EntryReader
from tasks.output.views import Views
from tasks.records import ItemFailure
from tasks.report.export_files import ItemNames, Missing, Puts, batches
from tasks.report.export_images import encoded, pictures

LONG_SIDE_PX = (640, 1920)
"""Pictures are drawn at their own size within these: below, outlines would hide what they are about."""
_ITEMS = "SELECT * FROM items WHERE status = 'ok' {which} ORDER BY uri, frame"
Row = dict[str, Any]
Overlay = Callable[..., np.ndarray]
"""A product's, which takes ``long_side_px`` of the picture that it makes, too."""


def write_images(views: Views, store: Store, overlay: Overlay) -> tuple[int, int]:
    """Write ``a/b.jpg`` for an image and ``a/clip.mp4/000012.jpg`` for a frame; returns (things, files).

    Args:
        overlay: draws a row of ``items`` whose ``labels`` have an entry per thing.

    Raises:
        DatasetError: an image cannot be read any more; everything else is there by then.
    """
    names, reader, missing = ItemNames(views), EntryReader(), Missing("")
    things = 0
    with Puts(store) as puts:
        for rows in batches(views, _ITEMS.format(which="")):
            for row, found in pictures(views, rows, reader):
                if isinstance(found, ItemFailure):
                    missing.add(row, found.error)
                else:
                    puts.put(f"{names.of(row)}.jpg", encoded(_drawn(found, row, overlay), "JPEG"))
                    things += len(row["labels"])
    missing.tell()
    return things, puts.count


def write_videos(views: Views, store: Store, overlay: Overlay) -> tuple[int, int]:
    """Write ``a/clip.mp4`` for a video, its frames shown when they were; returns (things, files); see ``write_images``.

    Frames without a result are not there: the one before them stays.

    Raises:
        UsageError: nothing of it is a video.
        DatasetError: a frame cannot be read any more; everything else is there by then.
    """
    names, reader, missing = ItemNames(views), EntryReader(), Missing("")
    rows = (pictures(views, batch, reader) for batch in batches(views, _ITEMS.format(which="AND media = 'video'")))
    things = files = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-video-") as folder:
        for _, frames in groupby(chain.from_iterable(rows), key=lambda one: one[0]["uri"]):
            path, name = Path(folder) / "clip.mp4", ""
            clip = ClipFile(path)
            for row, found in frames:
                name = name or str(Path(names.of(row)).parent)
                if isinstance(found, ItemFailure):
                    missing.add(row, found.error)
                    continue
                clip.add(_drawn(found, row, overlay), row["pts_s"])
                things += len(row["labels"])
            if clip.close():
                store.put_file_if_absent(f"{name.rpartition('.')[0] or name}.mp4", path)
                files += 1
                path.unlink()
    missing.tell()
    if not files:
        raise UsageError("there is no video among the results", hint="export --to images draws images")
    return things, files


def _drawn(image_rgb_hwc_u8: np.ndarray, row: Row, overlay: Overlay) -> np.ndarray:
    """(H, W, 3) uint8; of videos without scores, which would flicker."""
    least, most = LONG_SIDE_PX
    long_side_px = max(least, min(most, max(image_rgb_hwc_u8.shape[:2])))
    return overlay(image_rgb_hwc_u8, row, in_strip=row["media"] == "video", long_side_px=long_side_px)
