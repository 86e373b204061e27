"""Real videos, encoded on the spot: every frame is different, and tells its number."""

from __future__ import annotations

import fractions
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE_HW = (96, 128)


def picture(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Frame ``index``: noise, in part its own (so that every frame costs bits), and a bar at a place of its own."""
    noise = np.random.default_rng(5).integers(0, 120, (*size_hw, 3)).astype(np.uint8)
    rolled = np.roll(noise, 2 * index, axis=1)
    fresh = np.random.default_rng(index).integers(0, 255, (size_hw[0] // 8, size_hw[1] // 8, 3)).astype(np.uint8)
    rolled[size_hw[0] // 2 :] = fresh.repeat(4, axis=0).repeat(8, axis=1)[: size_hw[0] - size_hw[0] // 2]
    start = 3 * index % (size_hw[1] - 8)
    rolled[:, start : start + 8] = 255
    return rolled


def make_video(
    file_format: str,
    codec: str,
    *,
    frames: int = 40,
    gop: int = 10,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts_ms: Callable[[int], int] | None = None,
    size_hw: tuple[int, int] = SIZE_HW,
    sound: bool = False,
) -> bytes:
    """The bytes of a video of :func:`picture` frames at 25 a second, or at the times that ``pts_ms`` gives."""
    time_base = fractions.Fraction(1, 25) if pts_ms is None else fractions.Fraction(1, 1000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        with av.open(str(path), "w", format=file_format, options=container_options or {}) as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = size_hw[1], size_hw[0], "yuv420p"
            stream.codec_context.gop_size = gop
            stream.bit_rate = 800_000
            stream.codec_context.options = options or {}
            stream.codec_context.time_base = time_base
            voice: Any = container.add_stream("aac", rate=16_000) if sound else None
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(i, size_hw), format="rgb24")
                frame.pts, frame.time_base = (i if pts_ms is None else pts_ms(i)), time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if voice is not None:
                _add_sound(container, voice, frames / 25)
        return path.read_bytes()


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    for i in range(int(seconds * 16_000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, i * 1024, fractions.Fraction(1, 16_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_sound() -> bytes:
    """An MP4 without pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        with av.open(str(path), "w", format="mp4") as container:
            _add_sound(container, container.add_stream("aac", rate=16_000), 1.0)
        return path.read_bytes()


def with_rotation(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 whose track header asks for the display matrix (a, b, c, d), as phones write it."""
    at = mp4.index(b"tkhd") - 4
    version = mp4[at + 8]
    position = at + 12 + (32 if version == 1 else 20) + 16
    a, b, c, d = matrix
    values = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return mp4[:position] + values + mp4[position + 36 :]


@dataclass(frozen=True, slots=True)
class VideoCase:
    """A video file and what must come of it: at least ``min_frames`` good frames, all of ``frames`` where it is whole.

    ``error_type`` is that of the one failed row at the end; empty where there is none.
    """

    name: str
    data: bytes
    frames: int | None = None
    min_frames: int = 0
    error_type: str = ""


def video_cases() -> list[VideoCase]:
    """Whole, odd and broken videos."""
    faststart = make_video("mp4", "libx264", options={"bf": "2"}, container_options={"movflags": "faststart"})
    index_last = make_video("mp4", "libx264", frames=12)
    mkv = make_video("matroska", "libx264", options={"bf": "2"})
    return [
        VideoCase("whole.mp4", faststart, frames=40),
        VideoCase("whole.avi", make_video("avi", "mpeg4", frames=25), frames=25),
        VideoCase("whole with space#.mkv", mkv, frames=40),
        VideoCase("with-sound.mp4", make_video("mp4", "libx264", frames=12, sound=True), frames=12),
        VideoCase("turned.mp4", with_rotation(index_last, (0, 1, -1, 0)), frames=12),
        VideoCase("cut-off.mp4", faststart[: len(faststart) * 6 // 10], min_frames=6, error_type="VideoBroken"),
        VideoCase("cut-off.mkv", mkv[: len(mkv) * 6 // 10], min_frames=6, error_type="VideoBroken"),
        VideoCase("index-lost.mp4", index_last[: len(index_last) // 2], error_type="NotAVideo"),
        VideoCase("sound-only.mp4", make_sound(), error_type="NoVideoStream"),
        VideoCase("empty.mp4", b"", error_type="NotAVideo"),
        VideoCase("text.mp4", b"this is not a video\n" * 50, error_type="NotAVideo"),
    ]


def write_video_corpus(folder: Path) -> dict[str, VideoCase]:
    """Write every case into a folder; returns them by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {case.name: case for case in video_cases()}
    for case in cases.values():
        (folder / case.name).write_bytes(case.data)
    return cases
