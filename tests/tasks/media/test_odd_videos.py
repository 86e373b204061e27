"""Damaged, odd and foreign videos, made on the spot: every file has a row, what a strict FFmpeg takes is not called
damaged, and what it refuses does not pass without a word.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
import numpy as np
import pytest

from tasks.media.decoding import DecodeOptions, Frame, decode_fetched
from tasks.media.endings import VIDEO_ENDINGS
from tasks.media.video_index import cut_video
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests import videos

NUM_FRAMES = 16
SIZE_HW = (48, 64)
# Of each container: its name to FFmpeg and a codec; every one that PyAV's FFmpeg can write and reads by its ending.
CONTAINERS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "m4v": ("ipod", "libx264"),
    "f4v": ("f4v", "libx264"),
    "3gp": ("3gp", "mpeg4"),
    "3g2": ("3g2", "mpeg4"),
    "avi": ("avi", "mpeg4"),
    "divx": ("avi", "mjpeg"),
    "mkv": ("matroska", "libx264"),
    "mk3d": ("matroska", "ffv1"),
    "webm": ("webm", "libvpx"),
    "mpg": ("mpeg", "mpeg1video"),
    "vob": ("vob", "mpeg2video"),
    "ts": ("mpegts", "libx264"),
    "m2ts": ("mpegts", "mpeg2video"),
    "mxf": ("mxf", "mpeg2video"),
    "flv": ("flv", "flv"),
    "wmv": ("asf", "wmv2"),
    "mjpg": ("mjpeg", "mjpeg"),
    "h264": ("h264", "libx264"),
    "hevc": ("hevc", "libx265"),
    "ivf": ("ivf", "libvpx"),
    "m1v": ("mpeg1video", "mpeg1video"),
    "m2v": ("mpeg2video", "mpeg2video"),
}
STRICTER = ("shorter than its header says", "Corrupt JPEG data")
OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx": {"cpu-used": "8", "deadline": "realtime"},
    "mjpeg": {"strict": "unofficial"},
}


@cache
def sample(ending: str) -> bytes:
    file_format, codec = CONTAINERS[ending]
    return videos.make_video(file_format, codec, frames=NUM_FRAMES, gop=6, options=OPTIONS.get(codec), size_hw=SIZE_HW)


def rows(data: bytes, name: str) -> list[Frame]:
    entry = Entry(name, unknown_etag(len(data)), len(data), "video")
    return list(decode_fetched(entry, data, DecodeOptions()))


@dataclass(frozen=True)
class Verdict:
    """What FFmpeg says, asked strictly and to the first error.

    Args:
        frames: decoded before it.
        error: of the demuxer or the decoder; "" for none.
    """

    frames: int
    error: str


def strictly(data: bytes) -> Verdict:
    """H.264 is not decoded strictly by anybody: FFmpeg's strict mode refuses healthy streams."""
    frames, error = 0, ""
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            context: Any = stream.codec_context
            context.thread_count = 1
            if context.name != "h264":
                context.options = {"err_detect": "explode"}
            for packet in container.demux(stream):
                marked = packet.is_corrupt
                for frame in packet.decode():
                    frames += 1
                    marked = marked or frame.is_corrupt
                if marked:
                    error = "marked as corrupt"
    except Exception as caught:  # noqa: BLE001 - damaged files make FFmpeg raise anything
        error = f"{type(caught).__name__}: {caught}"
    return Verdict(frames, error)


def damaged(data: bytes, number: int) -> bytes:
    """One of many ways to cut or to change a file."""
    choose = np.random.default_rng(number)
    if number % 3 == 0:
        return data[: choose.integers(1, len(data))]
    if number % 3 == 1:
        start = int(choose.integers(0, len(data) - 1))
        return data[:start] + data[start + int(choose.integers(1, 400)) :]
    changed = bytearray(data)
    for place in choose.integers(0, len(data), choose.integers(1, 9)):
        changed[place] = choose.integers(0, 256)
    return bytes(changed)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_whole_files_of_every_container_give_all_their_frames(ending: str) -> None:
    frames = rows(sample(ending), f"a.{ending}")
    assert [frame.failure for frame in frames] == [None] * NUM_FRAMES
    assert [frame.frame for frame in frames] == list(range(NUM_FRAMES))


@pytest.mark.parametrize("ending", CONTAINERS)
def test_every_damaged_file_has_rows_and_damage_is_said_where_there_is_some(ending: str) -> None:
    for number in range(15):
        data = damaged(sample(ending), number)
        verdict, frames = strictly(data), rows(data, f"a.{ending}")
        numbers = [frame.frame for frame in frames]
        assert numbers, "a row, whatever it is"
        assert numbers == sorted(set(numbers))
        assert len(cut_video(io.BytesIO(data), 8)) > 0, "it is planned, so that it comes to its rows"
        errors = [frame.failure.error for frame in frames if frame.failure is not None]
        if verdict.error:
            assert errors or any(frame.notes for frame in frames), (number, verdict)
        else:  # the header knows what is not there, and libjpeg sees what FFmpeg's decoder does not
            assert all(any(words in error for words in STRICTER) for error in errors), (number, errors)
            assert len(frames) - len(errors) == verdict.frames - sum("JPEG" in error for error in errors), number


@pytest.mark.parametrize("ending", CONTAINERS)
def test_a_wrong_ending_harms_no_video(ending: str) -> None:
    for other in ("mp4", "bin"):
        assert [frame.failure for frame in rows(sample(ending), f"a.{other}")] == [None] * NUM_FRAMES


@pytest.mark.parametrize("data", [b"", b"\0", b"text\n" * 99, bytes(999), b"%PDF-1.7\n", bytes(range(256)) * 9])
def test_what_is_no_video_is_one_failed_row_by_any_name(data: bytes) -> None:
    for ending in sorted(VIDEO_ENDINGS):
        (frame,) = rows(data, f"a.{ending}")
        assert frame.failure is not None
        assert frame.failure.error
