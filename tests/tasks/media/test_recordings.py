"""Recordings as they are found: joined, interrupted, damaged in the middle, with headers that lie."""

from __future__ import annotations

import io
import resource
import struct
import time
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from tasks.media.decoding import DecodeOptions, Frame, decode_fetched
from tasks.media.video_gaps import VideoGap, last_missing
from tasks.media.video_index import Piece, cut_video
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests import videos


def decode(data: bytes, piece: Piece | None = None, **options: object) -> list[Frame]:
    place = {} if piece is None else {"first_frame": piece.first_frame, "end_frame": piece.end_frame}
    entry = Entry("v", unknown_etag(0), 0, "video", first_pts=None if piece is None else piece.first_pts, **place)  # type: ignore[arg-type]
    return list(decode_fetched(entry, data, DecodeOptions(**options)))  # type: ignore[arg-type]


def pixels(frame: Frame) -> np.ndarray:
    assert frame.image_rgb_hwc_u8 is not None, frame.failure
    return frame.image_rgb_hwc_u8


def failures(frames: list[Frame]) -> list[str]:
    return [frame.failure.error for frame in frames if frame.failure is not None]


@cache
def recording(file_format: str, codec: str, frames: int = 30, **more: str) -> bytes:
    return videos.make_video(file_format, codec, frames=frames, options=more or None)


JOINED = {
    "h264 with B-frames in mpegts": ("mpegts", "libx264", {"bf": "2"}),
    "h264 in mpegts": ("mpegts", "libx264", {"bf": "0"}),
    "hevc in mpegts": ("mpegts", "libx265", {"x265-params": "log-level=none:bframes=3"}),
    "mpeg2 with B-frames in mpegts": ("mpegts", "mpeg2video", {"bf": "2"}),
    "mpeg2 with B-frames in vob": ("vob", "mpeg2video", {"bf": "2"}),
}


@pytest.mark.parametrize("kind", JOINED)
def test_recordings_that_were_joined_give_every_frame_of_each_and_times_that_never_run_back(kind: str) -> None:
    file_format, codec, more = JOINED[kind]
    first, second = recording(file_format, codec, 30, **more), recording(file_format, codec, 20, **more)
    expected = decode(first) + decode(second) + decode(first)
    frames = decode(first + second + first)
    assert not failures(frames)
    assert [frame.frame for frame in frames] == list(range(80))
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(pixels(frame), pixels(other))
    times = [frame.pts_s for frame in frames]
    assert [time for time in times[:30]] == [frame.pts_s for frame in expected[:30]]
    assert all(later - earlier == pytest.approx(0.04) for earlier, later in pairwise(times))  # type: ignore[operator]
    restarted = [any("clock of the recording restarted" in note for note in frame.notes) for frame in frames]
    assert restarted == [False] * 30 + [True] * 50


def test_joined_recordings_stay_in_one_piece() -> None:
    one = recording("mpegts", "libx264", 60, bf="0")
    assert len(cut_video(io.BytesIO(one), 20)) > 1
    assert len(cut_video(io.BytesIO(one + one), 20)) == 1


def test_a_recording_that_lost_data_stays_in_one_piece() -> None:
    one = recording("mpegts", "libx264", 60, bf="0")
    at = len(one) // 2 // 188 * 188
    assert len(cut_video(io.BytesIO(one[:at] + one[at + 188 :]), 20)) == 1


@pytest.mark.parametrize("stride", [1, 5, 10])
def test_a_gap_is_one_row_where_a_wanted_frame_is_in_it(stride: int) -> None:
    whole = recording("mp4", "mpeg4", 40)
    start = whole.index(b"mdat") + 4
    sizes = table_of(whole, b"stsz")
    damaged = bytearray(whole)
    for number in (12, 13, 14, 25):  # groups of ten: what refers to them is decoded all the same, with a note
        at = start + sum(sizes[:number])
        damaged[at : at + sizes[number]] = bytes(sizes[number])
    frames = decode(bytes(damaged), stride=stride)
    gaps = {1: {12: 14, 25: 25}, 5: {25: 25}, 10: {}}[stride]
    found = {frame.frame: last_missing(frame.failure.error) for frame in frames if frame.failure is not None}
    assert found == gaps
    if stride == 1:
        assert failures(frames)[0].startswith("frames 12 to 14 are missing, from 0.480 s to 0.560 s: ")
    good = {frame.frame: frame for frame in frames if frame.failure is None}
    lost = {12, 13, 14, 25}
    assert sorted(good) == [i for i in range(0, 40, stride) if i not in lost]
    tainted = {i for i in good if any("after damaged data" in note for note in good[i].notes)}
    assert tainted == {i for i in good if 15 <= i < 20 or 26 <= i < 30}
    for frame in decode(whole, stride=stride):
        if frame.frame in good.keys() - tainted:
            np.testing.assert_array_equal(pixels(good[frame.frame]), pixels(frame))


def table_of(mp4: bytes, box: bytes) -> list[int]:
    """The entries of a stsz box."""
    at = mp4.index(box)
    count = struct.unpack(">I", mp4[at + 12 : at + 16])[0]
    return list(struct.unpack(f">{count}I", mp4[at + 16 : at + 16 + 4 * count]))


def test_pieces_of_a_damaged_video_give_the_rows_of_the_whole() -> None:
    whole = bytearray(recording("mp4", "mpeg4", 60))
    start, sizes = whole.index(b"mdat") + 4, table_of(bytes(whole), b"stsz")
    for number in (18, 19, 20, 45):  # over a cut, too: the keyframe of the second piece is lost
        at = start + sum(sizes[:number])
        whole[at : at + sizes[number]] = bytes(sizes[number])
    data = bytes(whole)
    pieces = [
        Piece(0, 20, None, 20),
        Piece(20, 40, keyframe_pts(data, 20), 20),
        Piece(40, None, keyframe_pts(data, 40), 20),
    ]
    rows = [frame for piece in pieces for frame in decode(data, piece)]
    covered = [i for row in rows for i in range(row.frame, (last_of(row)) + 1)]
    assert covered == list(range(60))
    good = {row.frame for row in rows if row.failure is None}
    assert good == set(range(60)) - {18, 19, 20, 45}


def last_of(row: Frame) -> int:
    last = None if row.failure is None else last_missing(row.failure.error)
    return row.frame if last is None else last


def keyframe_pts(data: bytes, frame: int) -> int:
    import av

    with av.open(io.BytesIO(data)) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size and packet.pts is not None)
    return times[frame]


def test_frames_that_the_decoder_marks_as_damaged_can_be_kept() -> None:
    whole = recording("mpegts", "libx264", 30, bf="0")
    at = len(whole) // 2 // 188 * 188
    data = whole[:at] + whole[at + 188 :]
    strict, kept = decode(data), decode(data, damaged="keep")
    assert failures(strict)
    assert [note for frame in kept for note in frame.notes if note.startswith("damaged: ")]
    assert len([f for f in kept if f.failure is None]) > len([f for f in strict if f.failure is None])


def test_a_stream_that_begins_in_the_middle_of_a_broadcast_harms_nobody() -> None:
    silent = videos.make_video("mpegts", "libx264", frames=20)
    loud = videos.make_video("mpegts", "libx264", frames=100, sound=True)
    frames = decode(silent + loud)
    assert not failures(frames)
    assert len(frames) == 120
    assert len(cut_video(io.BytesIO(silent + loud), 20)) == 1


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 100])
def test_the_size_in_the_header_of_an_avi_is_no_proof(size: int) -> None:
    whole = recording("avi", "mpeg4", 20)
    data = whole[:4] + struct.pack("<I", size) + whole[8:]
    frames = decode(data)
    assert not failures(frames)
    assert len(frames) == 20
    assert failures(decode(data[: len(data) // 2])) or size in (0, 0xFFFFFFFF, 100)


@cache
def motion_jpeg() -> bytes:
    return videos.make_video("avi", "mjpeg", frames=40, options={"strict": "unofficial"})


def chunks(avi: bytes) -> list[tuple[int, int]]:
    """Offset and size of the data of every frame of an AVI."""
    import av

    with av.open(io.BytesIO(avi)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos]


def test_pictures_of_a_motion_jpeg_are_judged_by_libjpeg() -> None:
    data = bytearray(motion_jpeg())
    at, size = chunks(bytes(data))[12]
    data[at + size - 300 : at + size - 2] = bytes(298)
    frames = decode(bytes(data))
    (failure,) = failures(frames)
    assert failure.startswith("frame 12 is missing, at 0.480 s: Corrupt JPEG data")
    assert [frame.frame for frame in frames] == list(range(40))
    assert all(not frame.notes for frame in frames)


def test_a_picture_that_only_libjpeg_refuses_can_be_kept() -> None:
    short = videos.make_video("avi", "mjpeg", frames=3, options={"strict": "unofficial"})
    at, size = chunks(short)[1]
    outcomes = set()
    for place in range(at + 700, at + size, 97):
        data = bytearray(short)
        data[place] ^= 0x55
        strict, kept = decode(bytes(data))[1], decode(bytes(data), damaged="keep")[1]
        outcomes.add((strict.failure is None, kept.failure is None))
        if strict.failure is not None and kept.failure is None:
            assert kept.notes[0].startswith("damaged: Corrupt JPEG data")
    assert (False, True) in outcomes
    assert (True, False) not in outcomes


def test_padding_behind_the_pictures_of_a_camera_is_no_damage() -> None:
    data = bytearray(motion_jpeg())
    for at, size in chunks(bytes(data))[:5]:
        assert data[at + size - 2 : at + size] == b"\xff\xd9"
        data[at + size - 2 : at + size] = b"\x00\x00"
    frames = decode(bytes(data))
    assert not failures(frames)
    assert len(frames) == 40


@pytest.mark.parametrize("pieces", [1, 4])
def test_frames_of_an_avi_keep_their_numbers_behind_data_that_cannot_be_read(pieces: int) -> None:
    data, places = bytearray(motion_jpeg()), chunks(motion_jpeg())
    for number in (9, 10, 11, 24):  # the header of a chunk is gone, so the demuxer finds no packet there
        at, size = places[number]
        data[at - 8 : at + size] = bytes(8 + size)
    cut = [Piece(i, i + 10, i or None, 10) for i in (0, 10, 20)] + [Piece(30, None, 30, 10)]
    parts: list[Piece | None] = [None] if pieces == 1 else [*cut]
    frames = [frame for piece in parts for frame in decode(bytes(data), piece)]
    whole = decode(motion_jpeg())
    good = {frame.frame: frame for frame in frames if frame.failure is None}
    assert good.keys() >= set(range(9)) | set(range(13, 24)) | set(range(26, 40))
    assert not good.keys() & {9, 10, 11, 24}
    for number, frame in good.items():
        assert frame.pts_s == whole[number].pts_s
        np.testing.assert_array_equal(pixels(frame), pixels(whole[number]))
    covered = [number for frame in frames for number in range(frame.frame, last_of(frame) + 1)]
    assert covered == list(range(40))


def test_a_repeated_frame_of_an_avi_takes_its_time_and_no_number() -> None:
    data, (at, size) = bytearray(motion_jpeg()), chunks(motion_jpeg())[12]
    index = data.index(b"idx1") + 8
    struct.pack_into("<I", data, index + 16 * 12 + 12, 0)  # the frame before is shown once more
    struct.pack_into("<I", data, at - 4, 0)
    data[at - 8 : at + size] = b"JUNK" + struct.pack("<I", size) + bytes(size)
    frames = decode(bytes(data))
    assert not failures(frames)
    assert [frame.frame for frame in frames] == list(range(39))
    assert frames[12].pts_s == pytest.approx(13 / 25)
    pieces = cut_video(io.BytesIO(bytes(data)), 10)
    rows = [frame for piece in pieces for frame in decode(bytes(data), piece)]
    assert [(frame.frame, frame.pts_s, frame.failure) for frame in rows] == [(f.frame, f.pts_s, None) for f in frames]


@pytest.mark.parametrize("count", [10_000_000, 80_000_000, 1_000_000_000])
@pytest.mark.parametrize("where", ["durations", "sizes", "fragment"])
def test_a_small_file_that_claims_many_frames_costs_nothing(where: str, count: int) -> None:
    data = forged(where, count)
    before_kb, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    (piece,) = cut_video(io.BytesIO(data), 256)
    frames = decode(data)
    assert time.process_time() - start_s < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    assert piece.num_frames <= 20
    if where == "durations":
        assert len(frames) == 20
        assert not failures(frames)
    else:
        assert len(frames) == 1
        assert failures(frames)


def forged(where: str, count: int) -> bytes:
    """An MP4 of 20 frames whose header claims ``count``, in one of three ways."""
    if where == "fragment":
        flags = {"movflags": "frag_keyframe+empty_moov"}
        data = bytearray(videos.make_video("mp4", "mpeg4", frames=20, container_options=flags))
        at = data.index(b"trun") + 4
        struct.pack_into(">II", data, at, 1, count)  # no field for each frame
        return bytes(data)
    data = bytearray(recording("mp4", "mpeg4", 20))
    struct.pack_into(">III", data, data.index(b"stts") + 8, 1, count, 512)
    if where == "sizes":
        struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, count)
        struct.pack_into(">IIII", data, data.index(b"stsc") + 8, 1, 1, count, 1)
    return bytes(data)


@pytest.mark.parametrize(
    ("gap", "words", "last"),
    [
        (VideoGap(3, 3, 0.1, 0.1, "FramesMissing", "x"), "frame 3 is missing, at 0.100 s: x", 3),
        (VideoGap(3, 9, 0.1, 0.3, "FramesMissing", "x"), "frames 3 to 9 are missing, from 0.100 s to 0.300 s: x", 9),
        (VideoGap(3, 9, None, None, "FramesMissing", "x"), "frames 3 to 9 are missing: x", 9),
        (VideoGap(3, None, 0.1, None, "VideoBroken", "x"), "the video breaks at frame 3: x", None),
        (VideoGap(0, None, None, None, "NotAVideo", "cannot be opened"), "cannot be opened", None),
    ],
)
def test_the_row_of_a_gap_says_from_when_to_when_and_can_be_read_back(
    gap: VideoGap, words: str, last: int | None
) -> None:
    assert gap.message == words
    assert last_missing(gap.message) == last
