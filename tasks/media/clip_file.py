"""Videos that we write: an MP4 whose frames are shown at their own times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from infra.errors import UsageError

_CLOCK_HZ = 90_000  # every usual frame rate is a whole number of its ticks
_CODECS = ("libx264", "h264", "mpeg4")


class ClipFile:
    """An MP4 being written: H.264, each frame at its own time, even sides as its players want them.

    Args:
        path: of the file; it is there once a frame was added.
        quality: the encoder's constant rate factor: 18 shows no loss, 30 a little.
    """

    def __init__(self, path: Path, *, quality: int = 20) -> None:
        self._path, self._quality = path, quality
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
        self._stream.options = {"crf": str(self._quality), "preset": "veryfast"}
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
