"""What was found, drawn: a JPEG for each image and frame, or an MP4 for each video.

Colours are those of the report: one per class, and where there are tracks one per track, for ever the same.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from infra.errors import UsageError
from infra.store import Store
from tasks.media.decoding import EntryReader
from tasks.output.views import Views
from tasks.products.segments.export_files import ItemNames, Missing, Puts, batches
from tasks.products.segments.export_images import encoded, pictures
from tasks.products.segments.overlay import overlay
from tasks.records import ItemFailure

LONG_SIDE_PX = (640, 1920)
"""Pictures are drawn at their own size within these: below, outlines would hide what they are about."""
_CLOCK_HZ = 90_000  # of the MP4s: every usual frame rate is a whole number of its ticks
_CODECS = ("libx264", "h264", "mpeg4")
_ITEMS = "SELECT * FROM items WHERE status = 'ok' {which} ORDER BY uri, frame"
Row = dict[str, Any]


def write_images(views: Views, store: Store) -> tuple[int, int]:
    """Write ``a/b.jpg`` for an image and ``a/clip.mp4/000012.jpg`` for a frame; returns (instances, files).

    Raises:
        DatasetError: an image cannot be read any more; everything else is there by then.
    """
    names, reader, missing = ItemNames(views), EntryReader(), Missing("")
    instances = 0
    with Puts(store) as puts:
        for rows in batches(views, _ITEMS.format(which="")):
            for row, found in pictures(views, rows, reader):
                if isinstance(found, ItemFailure):
                    missing.add(row, found.error)
                else:
                    puts.put(f"{names.of(row)}.jpg", encoded(_drawn(found, row), "JPEG"))
                    instances += len(row["labels"])
    missing.tell()
    return instances, puts.count


def write_videos(views: Views, store: Store) -> tuple[int, int]:
    """Write ``a/clip.mp4`` for a video, its frames shown when they were; returns (instances, files).

    Frames without a result are not there: the one before them stays.

    Raises:
        UsageError: nothing of it is a video.
        DatasetError: a frame cannot be read any more; everything else is there by then.
    """
    names, reader, missing = ItemNames(views), EntryReader(), Missing("")
    rows = (pictures(views, batch, reader) for batch in batches(views, _ITEMS.format(which="AND media = 'video'")))
    instances = files = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-video-") as folder:
        for _, frames in groupby(chain.from_iterable(rows), key=lambda one: one[0]["uri"]):
            path, name = Path(folder) / "clip.mp4", ""
            clip = _Clip(path)
            for row, found in frames:
                name = name or str(Path(names.of(row)).parent)
                if isinstance(found, ItemFailure):
                    missing.add(row, found.error)
                    continue
                clip.add(_drawn(found, row), row["pts_s"])
                instances += len(row["labels"])
            if clip.close():
                store.put_file_if_absent(f"{name.rpartition('.')[0] or name}.mp4", path)
                files += 1
                path.unlink()
    missing.tell()
    if not files:
        raise UsageError("there is no video among the results", hint="export --to images draws images")
    return instances, files


def _drawn(image_rgb_hwc_u8: np.ndarray, row: Row) -> np.ndarray:
    """(H, W, 3) uint8; of videos without scores, which would flicker."""
    least, most = LONG_SIDE_PX
    long_side_px = max(least, min(most, max(image_rgb_hwc_u8.shape[:2])))
    return overlay(image_rgb_hwc_u8, row, in_strip=row["media"] == "video", long_side_px=long_side_px)


class _Clip:
    """An MP4 being written: H.264, each frame at its own time, even sides as its players want them.

    Args:
        path: of the file; it is there once a frame was added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container: Any = None
        self._stream: Any = None
        self._first_s = 0.0
        self._last: tuple[np.ndarray, int] | None = None
        self._next = 0
        self._durations: dict[int, int] = {}
        self._ticks = _CLOCK_HZ // 25

    def add(self, pixels: np.ndarray, pts_s: float) -> None:
        """(H, W, 3) uint8; all are shown at the size of the first."""
        if self._container is None:
            self._open(pixels, pts_s)
        height, width = self._stream.height, self._stream.width
        if pixels.shape[:2] != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        if self._last is not None:
            self._write(max(self._last[1] + 1, round((pts_s - self._first_s) * _CLOCK_HZ)))
        self._last = pixels, 0 if self._last is None else self._next

    def close(self) -> bool:
        """Whether there is a file."""
        if self._container is None:
            return False
        assert self._last is not None
        self._write(self._last[1] + self._ticks)
        self._mux(None)
        self._container.close()
        return True

    def _open(self, pixels: np.ndarray, pts_s: float) -> None:
        self._container = av.open(str(self._path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(_codec(), rate=30)
        self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in pixels.shape[:2])
        self._stream.pix_fmt, self._stream.codec_context.time_base = "yuv420p", Fraction(1, _CLOCK_HZ)
        self._stream.time_base = Fraction(1, _CLOCK_HZ)
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._first_s = pts_s

    def _write(self, until: int) -> None:
        """The frame that was held back until it was known how long it is shown."""
        assert self._last is not None
        pixels, pts = self._last
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = pts, Fraction(1, _CLOCK_HZ)
        self._next, self._ticks = until, until - pts
        self._durations[pts] = self._ticks
        self._mux(frame)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._durations.pop(packet.pts, packet.duration)  # encoders do not carry it over
            self._container.mux(packet)


def _codec() -> str:
    """The best encoder that this PyAV has."""
    for name in _CODECS:
        try:
            av.codec.Codec(name, "w")
            return name
        except av.codec.codec.UnknownCodecError:
            continue
    raise UsageError("this PyAV writes no MP4", hint="install PyAV's own wheels: pip install av")
