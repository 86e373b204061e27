"""Cuts are checked against a full decode: the frame at each cut must be the very one the index promises."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest

from tasks.media.video_index import Piece, SliceReader, cut_video

H, W = 48, 64


def picture(index: int) -> np.ndarray:
    """A frame that shows its own index as eight black or white columns, readable after lossy coding."""
    bits = [(index >> bit) & 1 for bit in range(8)]
    return np.repeat(np.array(bits, np.uint8) * 255, W // 8)[None, :, None] * np.ones((H, 1, 3), np.uint8)


def number_in(frame: av.VideoFrame) -> int:
    columns = frame.to_ndarray(format="gray").mean(axis=0).reshape(8, W // 8).mean(axis=1)
    return sum(1 << bit for bit, level in enumerate(columns) if level > 127)


def write_video(
    path: Path,
    codec: str,
    *,
    count: int = 200,
    gop: int = 25,
    uneven: bool = False,
    pixels: str = "yuv420p",
    b_frames: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """``count`` frames at 25 Hz, or with uneven times."""
    steps = np.random.default_rng(7).integers(10, 90, count) if uneven else np.full(count, 40)
    times_ms = np.cumsum(steps) - steps[0]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = W, H, pixels
        stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if uneven:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts = int(times_ms[index]) if uneven else index
            frame.time_base = Fraction(1, 1000) if uneven else Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> list[tuple[int | None, int]]:
    """(pts, number shown) of every frame, from the start."""
    with av.open(str(path)) as container:
        return [(frame.pts, number_in(frame)) for frame in container.decode(video=0)]


def decode_piece(path: Path, piece: Piece) -> list[int]:
    """The numbers shown in one piece, decoded as a worker does: seek to its pts, drop what comes before, count."""
    shown: list[int] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if piece.first_pts is not None:
            container.seek(piece.first_pts, stream=stream, backward=True)
        for frame in container.decode(stream):
            if piece.first_pts is not None and frame.pts is not None and frame.pts < piece.first_pts:
                continue
            if piece.end_frame is not None and len(shown) == piece.end_frame - piece.first_frame:
                break
            shown.append(number_in(frame))
    return shown


X265 = {"x265-params": "keyint=25:min-keyint=25:scenecut=0:log-level=none"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=25:min-keyint=25:scenecut=0:bframes=3:b-adapt=0:log-level=none"}
CASES: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"codec": "libx264"},
    "no-b-frames.mp4": {"codec": "libx264", "b_frames": 0},
    "open-gop.mp4": {"codec": "libx264", "options": OPEN_GOP},
    "hevc-open-gop.mp4": {"codec": "libx265", "options": X265},
    "uneven.mp4": {"codec": "libx264", "uneven": True},
    "faststart.mp4": {"codec": "libx264", "container_options": {"movflags": "+faststart"}},
    "fragmented.mp4": {"codec": "libx264", "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "b-frames.mov": {"codec": "libx264"},
    "b-frames.mkv": {"codec": "libx264"},
    "uneven.mkv": {"codec": "libx264", "uneven": True},
    "hevc-open-gop.mkv": {"codec": "libx265", "options": X265},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
}


@pytest.mark.parametrize("name", CASES)
def test_pieces_begin_at_keyframes_with_exact_frame_numbers(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, **CASES[name])
    frames = decoded(path)
    assert [number for _, number in frames] == list(range(200)), "the test video must be readable"
    with path.open("rb") as file:
        pieces = cut_video(file, 60)
    assert len(pieces) == 3
    assert [piece.first_frame for piece in pieces] == [0, *(piece.end_frame for piece in pieces[:-1])]
    assert pieces[-1].end_frame is None
    assert sum(piece.num_frames for piece in pieces) == 200
    for piece in pieces[1:]:
        assert frames[piece.first_frame][0] == piece.first_pts
    shown = [number for piece in pieces for number in decode_piece(path, piece)]
    assert shown == list(range(200))


def test_an_edit_list_that_hides_the_beginning_moves_all_frame_numbers(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", "libx264")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "edited.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = int(10 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    frames = decoded(tmp_path / "edited.mp4")
    assert [number for _, number in frames] == list(range(10, 200))
    with (tmp_path / "edited.mp4").open("rb") as file:
        pieces = cut_video(file, 60)
    assert len(pieces) == 3
    for piece in pieces[1:]:
        assert frames[piece.first_frame][0] == piece.first_pts
        assert decode_piece(tmp_path / "edited.mp4", piece)[0] == piece.first_frame + 10


def test_the_index_is_read_without_the_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", "mjpeg", count=2000, pixels="yuvj420p")
    counted = Counting(path.open("rb"))
    with counted.file:
        pieces = cut_video(counted, 700)  # type: ignore[arg-type]
    assert len(pieces) == 3
    assert path.stat().st_size > 1_000_000
    assert counted.bytes_read < path.stat().st_size / 3


class Counting(io.RawIOBase):
    """Counts what is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes_read = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.bytes_read += len(data)
        return data


def test_a_short_video_stays_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", "libx264", count=80)
    with path.open("rb") as file:
        assert cut_video(file, 60) == [Piece(0, None, None, 80)]


def test_avi_with_b_frames_stays_whole_because_its_times_are_made_up(tmp_path: Path) -> None:
    path = write_video(tmp_path / "b.avi", "libx264")
    with path.open("rb") as file:
        assert cut_video(file, 60) == [Piece(0, None, None, 200)]


def test_a_video_that_begins_before_its_first_keyframe_stays_whole(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", "libx264", b_frames=0)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "headless.mkv"), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number >= 5:
                packet.stream = copy
                target.mux(packet)
    with (tmp_path / "headless.mkv").open("rb") as file:
        assert cut_video(file, 60) == [Piece(0, None, None, 195)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("name", ["b-frames.mp4", "faststart.mp4", "b-frames.mkv", "mpeg4.avi"])
def test_a_cut_short_video_never_raises_and_covers_every_frame_once(tmp_path: Path, name: str, share: float) -> None:
    path = write_video(tmp_path / name, **CASES[name])
    data = path.read_bytes()
    pieces = cut_video(io.BytesIO(data[: int(len(data) * share)]), 60)
    assert pieces[0].first_frame == 0
    assert pieces[0].first_pts is None
    assert pieces[-1].end_frame is None
    assert [piece.first_frame for piece in pieces[1:]] == [piece.end_frame for piece in pieces[:-1]]


@pytest.mark.parametrize("data", [b"", b"no video", b"\x00\x00\x00\x18ftypmp42" + b"\0" * 200])
def test_what_is_no_video_is_one_uncut_piece(data: bytes) -> None:
    assert cut_video(io.BytesIO(data), 60) == [Piece(0, None, None, 0)]


def test_sound_without_pictures_is_one_uncut_piece(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with (tmp_path / "a.mp4").open("rb") as file:
        assert cut_video(file, 60) == [Piece(0, None, None, 1)]


def test_a_slice_reads_as_a_file_of_its_own() -> None:
    part = SliceReader(io.BytesIO(b"before" + bytes(range(100)) + b"after"), 6, 100)
    assert part.read() == bytes(range(100))
    assert part.read(1) == b""
    assert part.seek(-3, io.SEEK_END) == 97
    assert part.read(10) == bytes([97, 98, 99])
    assert part.seek(10) == part.tell() == 10
    assert part.seek(5, io.SEEK_CUR) == 15
    assert part.read(2) == bytes([15, 16])
    assert part.seek(200) == 200
    assert part.read(1) == b""
