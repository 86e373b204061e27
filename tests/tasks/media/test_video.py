from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from infra.store import open_store
from tasks.media.decoding import DecodeOptions, EntryReader, Frame, decode_entry, decode_fetched
from tasks.media.video_files import declared_bytes
from tasks.media.video_gaps import last_missing
from tasks.media.video_index import cut_video
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests import videos
from tests.faults import Fault, FaultyS3

OPEN_GOP = {"x264-params": "open-gop=1:bframes=2:b-adapt=0:scenecut=0"}
KINDS: dict[str, dict] = {
    "h264 with B-frames in mp4": {"file_format": "mp4", "codec": "libx264", "options": {"bf": "3"}},
    "h264 with open groups in mp4": {"file_format": "mp4", "codec": "libx264", "options": OPEN_GOP},
    "h264 in fragmented mp4": {
        "file_format": "mp4",
        "codec": "libx264",
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "mpeg4 in avi": {"file_format": "avi", "codec": "mpeg4"},
    "h264 in mkv": {"file_format": "matroska", "codec": "libx264", "options": {"bf": "2"}},
    "h264 in mpegts": {"file_format": "mpegts", "codec": "libx264", "options": {"bf": "2"}},
    "hevc in mp4": {"file_format": "mp4", "codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3"}},
    "vp9 in webm": {"file_format": "webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "vp8 with hidden frames in webm": {
        "file_format": "webm",
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    },
    "mjpeg in avi": {"file_format": "avi", "codec": "mjpeg"},
    "h264 with uneven times in mkv": {
        "file_format": "matroska",
        "codec": "libx264",
        "options": {"bf": "2"},
        "pts_ms": lambda i: i * 40 + (i % 3) * 7 + (500 if i > 20 else 0),
    },
}


@cache
def video(kind: str) -> bytes:
    settings = dict(KINDS[kind])
    if settings["codec"] == "mjpeg":
        settings["options"] = {"strict": "unofficial"}
    return videos.make_video(**settings)


def entry_of(first: int = 0, end: int | None = None, pts: int | None = None) -> Entry:
    return Entry("v", unknown_etag(0), 0, "video", first_frame=first, end_frame=end, first_pts=pts)


def decode(data: bytes, entry: Entry | None = None, stride: int = 1, **options: int) -> list[Frame]:
    return list(decode_fetched(entry or entry_of(), data, DecodeOptions(stride=stride, **options)))


def ffmpeg_frames(data: bytes) -> Iterator[tuple[float, np.ndarray]]:
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            yield float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")


def pixels(frame: Frame) -> np.ndarray:
    assert frame.image_rgb_hwc_u8 is not None, frame.failure
    return frame.image_rgb_hwc_u8


def assert_equal(actual: list[Frame], expected: list[Frame]) -> None:
    assert [(f.frame, f.pts_s, f.failure) for f in actual] == [(f.frame, f.pts_s, f.failure) for f in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_comes_once_in_order_with_its_time(kind: str) -> None:
    frames = decode(video(kind))
    assert [frame.frame for frame in frames] == list(range(40))
    for frame, (pts_s, expected) in zip(frames, ffmpeg_frames(video(kind)), strict=True):
        assert frame.pts_s == pts_s
        assert frame.size_hw == videos.SIZE_HW
        np.testing.assert_array_equal(pixels(frame), expected)


def cut_at_keyframes(data: bytes) -> list[Entry]:
    """One piece per keyframe, by the definition: a frame's index is the rank of its packet's time stamp."""
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
        keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    starts = [times.index(pts) for pts in keys]
    ends = [*starts[1:], None]
    return [entry_of(first, end, pts) for first, end, pts in zip(starts, ends, keys, strict=True)]


def of_pieces(data: bytes, pieces: list[Entry], stride: int) -> list[Frame]:
    return [frame for piece in pieces for frame in decode(data, piece, stride)]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_video_are_the_whole(kind: str, stride: int) -> None:
    data = video(kind)
    pieces = cut_at_keyframes(data)
    assert len(pieces) >= 3
    assert_equal(of_pieces(data, pieces, stride), decode(data, stride=stride))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_as_the_plan_cuts_them_are_the_whole(kind: str) -> None:
    data = video(kind)
    pieces = [entry_of(p.first_frame, p.end_frame, p.first_pts) for p in cut_video(io.BytesIO(data), 10)]
    assert_equal(of_pieces(data, pieces, 1), decode(data))


def test_stride_counts_on_the_index_of_the_whole_video() -> None:
    data = video("h264 with B-frames in mp4")
    assert [frame.frame for frame in decode(data, stride=7)] == [0, 7, 14, 21, 28, 35]
    piece = cut_at_keyframes(data)[1]
    expected = [i for i in range(piece.first_frame, piece.end_frame or 40) if i % 7 == 0]
    assert [frame.frame for frame in decode(data, piece, stride=7)] == expected


def test_uneven_times_are_kept() -> None:
    times = [frame.pts_s for frame in decode(video("h264 with uneven times in mkv"))]
    assert times == pytest.approx([(i * 40 + (i % 3) * 7 + (500 if i > 20 else 0)) / 1000 for i in range(40)], abs=1e-3)


ROTATIONS = {"clockwise": ((0, 1, -1, 0), -1), "half": ((-1, 0, 0, -1), 2), "counter-clockwise": ((0, -1, 1, 0), 1)}


@pytest.mark.parametrize("turn", ROTATIONS)
def test_phone_videos_come_out_upright(turn: str) -> None:
    matrix, quarter_turns = ROTATIONS[turn]
    data = videos.make_video("mp4", "libx264", frames=4)
    plain = decode(data)
    for stored, shown in zip(plain, decode(videos.with_rotation(data, matrix)), strict=True):
        np.testing.assert_array_equal(pixels(shown), np.rot90(pixels(stored), quarter_turns))
        assert pixels(shown).flags.c_contiguous
        assert shown.size_hw == pixels(shown).shape[:2]
        assert "turned by its display matrix" in shown.notes[0]


def test_sound_beside_the_pictures_changes_nothing() -> None:
    silent, loud = (videos.make_video("mp4", "libx264", frames=12, sound=sound) for sound in (False, True))
    assert_equal(decode(loud), decode(silent))


BROKEN = ["h264 with B-frames in mp4", "mpeg4 in avi", "h264 in mkv", "h264 in mpegts", "hevc in mp4", "vp9 in webm"]


@cache
def faststart(kind: str) -> bytes:
    """The kind with its index before the data where it has one, so that a cut leaves it readable."""
    settings = dict(KINDS[kind])
    if settings["file_format"] == "mp4":
        settings["container_options"] = {"movflags": "faststart"}
    return videos.make_video(**settings)


def good_of(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.failure is None]


def assert_numbered(frames: list[Frame]) -> None:
    """Each item once, in order, without a jump but behind the row that says what is missing; time never runs back."""
    expected = 0
    for frame in frames:
        assert frame.frame == expected
        last = None if frame.failure is None else last_missing(frame.failure.error)
        expected = (frame.frame if last is None else last) + 1
    times = [frame.pts_s for frame in good_of(frames) if frame.pts_s is not None]
    assert times == sorted(times)


def is_sure(frame: Frame) -> bool:
    """Whether no note says that the frame may show traces of damage."""
    return not any("after damaged data" in note for note in frame.notes)


def assert_as_in(whole: list[Frame], frames: list[Frame]) -> None:
    """Each of these frames shows what the frame of the same time shows in the whole video."""
    by_time = {round(1e4 * (frame.pts_s or 0)): frame for frame in whole}
    for frame in frames:
        np.testing.assert_array_equal(pixels(frame), pixels(by_time[round(1e4 * (frame.pts_s or 0))]))


def assert_all_told(whole: list[Frame], frames: list[Frame]) -> None:
    """Every frame of the whole came, or lies in the times that a failed row or a note names."""
    words = [frame.failure.error for frame in frames if frame.failure is not None]
    words += [note for frame in good_of(frames) for note in frame.notes if note.startswith("data were lost")]
    times = [[float(time) for time in re.findall(r"(\d+\.\d+) s", word)] for word in words]
    told = [(min(found), max(found)) for found in times if found]
    ends = [frame.pts_s or 0 for frame in frames if frame.failure is not None and last_of(frame) is None]
    came = {round(1e3 * (frame.pts_s or 0)) for frame in good_of(frames)}
    for frame in whole:
        time = frame.pts_s or 0
        is_told = any(low - 1e-3 <= time <= high + 1e-3 for low, high in told) or any(time >= end for end in ends)
        assert round(1e3 * time) in came or is_told, time


def last_of(frame: Frame) -> int | None:
    return None if frame.failure is None else last_missing(frame.failure.error)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("share", [0.45, 0.8])
def test_a_cut_off_video_gives_its_frames_then_one_failure(kind: str, share: float) -> None:
    data = faststart(kind)
    frames = decode(data[: int(len(data) * share)])
    assert_numbered(frames)
    good, failures = good_of(frames), [frame.failure for frame in frames if frame.failure is not None]
    assert 5 < len(good) < 40
    assert_as_in(decode(data), good)
    (failure,) = failures
    assert failure.stage == "decode"
    # A transport stream has no end to miss: of its last packet that was cut in two nothing can be shown, that is all.
    assert failure.error_type == "VideoBroken" or "mpegts" in kind
    again = decode(data[: int(len(data) * share)])
    assert [frame.failure for frame in again] == [frame.failure for frame in frames]  # word for word


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("share", [4, 40])
def test_behind_zeroed_data_decoding_goes_on_and_every_missing_frame_is_told(kind: str, share: int) -> None:
    data = faststart(kind)
    whole = decode(data)
    middle, length = len(data) // 2, len(data) // share
    frames = decode(data[:middle] + bytes(length) + data[middle + length :])
    assert_numbered(frames)
    assert_all_told(whole, frames)
    # VP9 has no checks: a frame whose last rows are zeros decodes without a word, and so do those that refer to it.
    early = [frame for frame in good_of(frames) if not kind.startswith("vp9") or (frame.pts_s or 0) < 0.5]
    sure = [frame for frame in early if is_sure(frame)]
    assert len(sure) > 10
    assert_as_in(whole, sure)
    assert share == 4 or any((frame.pts_s or 0) > 1.2 for frame in good_of(frames))


def test_a_piece_behind_the_end_of_a_cut_off_video_is_one_failure() -> None:
    data = faststart("h264 with B-frames in mp4")
    piece = cut_at_keyframes(data)[-1]
    with av.open(io.BytesIO(data)) as container:
        start = next(packet.pos for packet in container.demux(video=0) if packet.pts == piece.first_pts)
    frames = decode(data[: start + 10], piece)
    assert [frame.frame for frame in frames] == [piece.first_frame]
    assert frames[0].failure is not None


@pytest.mark.parametrize("kind", ["mpeg4 in avi", "h264 with B-frames in mp4"])
def test_fewer_frames_than_listed_is_a_failure_at_the_first_missing(kind: str) -> None:
    *good, last = decode(video(kind), entry_of(0, 50))
    # With B-frames a missing frame could have been shown before the last two, so they don't count as proven.
    assert len(good) == (40 if kind == "mpeg4 in avi" else 38)
    assert_equal(good, decode(video(kind))[: len(good)])
    assert last.frame == len(good)
    assert last.failure is not None
    assert "frames up to 49 were listed" in last.failure.error


NO_VIDEO = {
    "empty": (b"", "NotAVideo"),
    "text": (b"no video at all\n" * 100, "NotAVideo"),
    "zeros": (bytes(10_000), "NotAVideo"),
    "sound only": (videos.make_sound(), "NoVideoStream"),
    "index lost": (videos.make_video("mp4", "libx264", frames=10)[:5000], "NotAVideo"),
    "play list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "NotAVideo"),
    "concatenation script": (b"ffconcat version 1.0\nfile /etc/hostname\n", "NotAVideo"),
}


def test_the_corpus_gives_what_its_cases_promise(tmp_path: Path) -> None:
    for name, case in videos.write_video_corpus(tmp_path).items():
        frames = decode((tmp_path / name).read_bytes())
        good = [frame for frame in frames if frame.failure is None]
        failures = [frame.failure.error_type for frame in frames if frame.failure is not None]
        assert [frame.frame for frame in frames] == list(range(len(frames))), name
        assert failures == ([case.error_type] if case.error_type else []), name
        assert case.frames is None or len(good) == case.frames, name
        assert len(good) >= case.min_frames, name


def test_a_script_never_opens_the_files_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg follows concatenation scripts and play lists; a worker or a planner must not, whatever a dataset holds."""
    (tmp_path / "secret.ts").write_bytes(video("h264 in mpegts"))
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile secret.ts\n"
    with av.open(io.BytesIO(script)) as followed:  # so it would be without our list of containers
        assert followed.format.name == "concat"
    assert [frame.failure.error_type for frame in decode(script) if frame.failure] == ["NotAVideo"]
    assert [piece.num_frames for piece in cut_video(io.BytesIO(script), 10)] == [0]


@pytest.mark.parametrize("name", NO_VIDEO)
def test_what_is_no_video_is_one_failed_item(name: str) -> None:
    data, error_type = NO_VIDEO[name]
    (frame,) = decode(data)
    assert frame.image_rgb_hwc_u8 is None
    assert frame.failure is not None
    assert (frame.frame, frame.failure.stage, frame.failure.error_type) == (0, "decode", error_type)
    assert "0x" not in frame.failure.error
    assert "none" not in frame.failure.error


def test_a_codec_nobody_can_decode_is_one_failed_item() -> None:
    data = video("mpeg4 in avi").replace(b"FMP4", b"ZZZZ").replace(b"fmp4", b"zzzz")
    frames = decode(data)
    assert len(frames) == 1
    assert frames[0].failure is not None
    assert frames[0].failure.error_type in {"UnknownCodec", "NoFrames"}


def test_the_pixel_limit_holds_for_frames() -> None:
    frames = decode(video("mpeg4 in avi"), max_pixels=96 * 128 - 1)
    assert len(frames) == 1
    assert frames[0].failure is not None
    assert frames[0].failure.error_type == "TooManyPixels"
    assert "128 x 96" in frames[0].failure.error


def test_large_videos_are_read_in_blocks_from_a_store(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.media.reading.WHOLE_BYTES", 1000)
    data = video("h264 with B-frames in mp4")
    store = open_store(store_uri)
    store.put("v.mp4", data)
    info = store.info("v.mp4")
    entry = Entry(store.uri_of("v.mp4"), info.etag, info.size_bytes, "video")
    assert_equal(list(decode_entry(entry, EntryReader(), DecodeOptions())), decode(data))


def test_a_video_replaced_while_it_is_read_is_a_fetch_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.media.reading.WHOLE_BYTES", 1000)
    monkeypatch.setattr("tasks.media.reading.BLOCK_BYTES", 4096)
    data = videos.make_video("mp4", "mpeg4", frames=60, size_hw=(240, 320), container_options={"movflags": "faststart"})
    store = open_store(str(tmp_path))
    store.put("v.mp4", data)
    info = store.info("v.mp4")
    frames = decode_entry(
        Entry(store.uri_of("v.mp4"), info.etag, info.size_bytes, "video"), EntryReader(), DecodeOptions()
    )
    first = next(frames)
    assert first.failure is None
    store.put("v.mp4", data[::-1])
    last = list(frames)[-1]
    assert last.failure is not None
    assert (last.failure.stage, last.failure.error_type) == ("fetch", "ObjectChanged")


@pytest.mark.s3
def test_a_store_that_dies_while_a_video_is_read_is_a_fetch_failure(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("VISIONMILL_STORE_FIRST_DELAY_S", "0.01")
    store = open_store(s3_bucket)
    store.put("v.mp4", video("h264 with B-frames in mp4"))
    info = store.info("v.mp4")
    faulty_s3.add(Fault("status", method="GET", path="v.mp4", status=503, times=None))
    entry = Entry(store.uri_of("v.mp4"), info.etag, info.size_bytes, "video")
    (frame,) = decode_entry(entry, EntryReader(), DecodeOptions())
    assert frame.failure is not None
    assert (frame.failure.stage, frame.failure.error_type) == ("fetch", "StoreUnavailable")


def test_nothing_is_printed_for_broken_videos(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(faststart("h264 with B-frames in mp4")[:40_000])
    code = (
        "import sys; from tasks.media.decoding import *; from tasks.records import Entry\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "frames = list(decode_fetched(Entry('v', 'unknown:0', 0, 'video'), data, DecodeOptions()))\n"
        "assert frames[-1].failure, frames"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "v")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_headers_tell_how_long_a_file_should_be() -> None:
    for kind in ("mpeg4 in avi", "h264 in mkv", "vp9 in webm"):
        data = video(kind)
        assert declared_bytes(data[:4096]) == len(data)
    assert declared_bytes(video("h264 in mpegts")[:4096]) is None
    assert declared_bytes(b"RIFF\0\0\0\0AVI ") is None  # a recorder that died
    assert declared_bytes(b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7) is None  # a live recording
    assert declared_bytes(b"\x1a\x45\xdf\xa3") is None
    assert declared_bytes(b"") is None


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        DecodeOptions(stride=0)
