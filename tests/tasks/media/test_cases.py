"""Files that once went wrong (``tests/cases/media``), each with its right value.

"Right" is what ffprobe and ffmpeg 5.1, Pillow, libtiff or djpeg say, or how the file was made. Run as a script, this
module prints a table of what comes of each: ``python -m tests.tasks.media.test_cases [FOLDER]``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tasks.media.decoding import DecodeOptions, Frame, decode_fetched
from tasks.media.endings import kind_of
from tasks.media.video_index import cut_video
from tasks.output.entries import unknown_etag
from tasks.records import Entry

CASES = Path(__file__).parents[2] / "cases" / "media"
PHONE_VIDEO = Path(__file__).parents[4] / "shared" / "data" / "phone_video"
CLOCK = "the clock of the recording restarted"


def tenths(count: int, start: float = 0.0, step: float = 0.1) -> list[float]:
    return [start + step * i for i in range(count)]


@dataclass(frozen=True, slots=True)
class Video:
    """How many good frames and when; when frames are missing; what some row must note; what the plan thinks.

    ``planned`` is an estimate where a file has no index: of a recording whose clock restarts, of one with a hole.
    """

    times: list[float]
    missing: tuple[str, ...] = ()
    note: str = ""
    size_hw: tuple[int, int] | None = None
    planned: int | None = None  # frames; None: as many as there are


LOST = [*tenths(18, 1.6), *tenths(41, 3.5)]
VIDEOS = {
    "flv_append_back.flv": Video(tenths(20, 60.0), note=CLOCK, planned=9),
    "cat_ps.mpg": Video(tenths(50, 0.54, 0.04), note=CLOCK, planned=24),
    "cat_same.ts": Video(tenths(20, 1.6), note=CLOCK, planned=10),
    "cat_same.mpg": Video(tenths(20, 1.6), note=CLOCK, planned=10),
    "catcc_size.mpg": Video(tenths(20, 1.6), note=CLOCK, planned=10),
    "ts_one_lost_packet.mpg": Video(
        LOST, missing=("frame 18 is missing, at 3.400 s: the data were lost",), note="after damaged data", planned=60
    ),
    "h264_b.avi": Video(tenths(20)),
    "h264_nob.avi": Video(tenths(20)),
    "paff.mpg": Video(tenths(20, 1.4, 0.04), note="interlaced"),
    "divx_packed.avi": Video(tenths(20)),
    "zero_sample.mov": Video(
        [0.1 * i for i in range(20) if i not in (5, 12)],
        missing=tuple(f"frame {i} is missing, at {i / 10:.3f} s: the file holds no data for it" for i in (5, 12)),
        planned=20,
    ),
    "piped.avi": Video(tenths(20)),
    "cover_audio.mp4": Video([], missing=("the file holds only sound, no video",), planned=1),
    "audio_only.mp4": Video([], missing=("the file holds only sound, no video",), planned=1),
    "two_streams.mp4": Video(tenths(10), note="2 video streams: number 1 is read", size_hw=(96, 128)),
    "sar.mp4": Video(tenths(20), note="pixels are not square (64:45)"),
    "hdr10.mp4": Video(tenths(20), note="high dynamic range, PQ"),
    "alpha_vp9.webm": Video(tenths(10), note="transparency is left aside"),
    "theora.ogv": Video(tenths(20)),
}

QUARTERS = ((12, 16), (12, 48), (36, 16), (36, 48))  # where the pictures of four colours and the ramps are looked at
FOUR = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (240, 240, 240))


@dataclass(frozen=True, slots=True)
class Picture:
    """The colours at :data:`QUARTERS`, or the kind of failure; what a note must say."""

    colours: tuple[tuple[int, int, int] | int, ...] = ()
    note: str = ""
    error_type: str = ""


IMAGES = {
    "trunc_with_eoi.jpg": Picture(error_type="CorruptImage"),
    "corrupt_mid.jpg": Picture(error_type="CorruptImage"),
    "g16_miniswhite.tif": Picture((190, 60, 190, 60), "16-bit samples"),
    "u32_gray.tif": Picture((65, 194, 65, 194), "32-bit samples: scaled from"),
    "b.tga": Picture(FOUR),
    "too_much_text.png": Picture(note="chunk 'zTXt' left out"),
    "bad_ancillary_crc.png": Picture(note="chunk 'tIME' left out: its checksum is wrong"),
    "no_eoi_prog.jpg": Picture(note="the end marker is missing"),
    "icc_swapped.jpg": Picture(FOUR, "colours converted from the profile"),
    "f32_rgb.tif": Picture(FOUR, "32-bit float samples: scaled from 0..1"),
    "g12in16.tif": Picture((65, 195, 65, 195), "12 bits used: scaled from 0..4095"),
    "rgbnir_noextra.tif": Picture(FOUR, "4 bands: the first three are red, green and blue"),
}


def decoded(path: Path) -> list[Frame]:
    data, media = path.read_bytes(), kind_of(path.name)
    if path.suffix == ".mpg":
        media = "video"
    assert media in ("image", "video"), f"{path.name} would be left out of a folder"
    entry = Entry(str(path), unknown_etag(len(data)), len(data), media)  # type: ignore[arg-type]
    return list(decode_fetched(entry, data, DecodeOptions()))


def test_every_case_has_its_right_value() -> None:
    assert {path.name for path in (CASES / "video").iterdir()} == VIDEOS.keys()
    assert {path.name for path in (CASES / "images").iterdir()} == IMAGES.keys()


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_give_the_frames_and_times_that_ffmpeg_gives(name: str) -> None:
    right, frames = VIDEOS[name], decoded(CASES / "video" / name)
    good = [frame for frame in frames if frame.failure is None]
    assert [frame.pts_s for frame in good] == pytest.approx(right.times, abs=1e-6)
    assert tuple(frame.failure.error for frame in frames if frame.failure is not None) == right.missing
    assert [frame.frame for frame in frames] == list(range(len(frames)))
    assert right.size_hw is None or {frame.size_hw for frame in good} == {right.size_hw}
    notes = {note for frame in good for note in frame.notes}
    assert any(right.note in note for note in notes) if right.note else not notes


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_planned_by_what_is_there(name: str) -> None:
    right = VIDEOS[name]
    with (CASES / "video" / name).open("rb") as file:
        pieces = cut_video(file, 60)
    planned = right.planned if right.planned is not None else len(right.times)
    assert [piece.num_frames for piece in pieces] == [planned]


@pytest.mark.parametrize("name", IMAGES)
def test_images_give_the_colours_that_are_right(name: str) -> None:
    right = IMAGES[name]
    (frame,) = decoded(CASES / "images" / name)
    if right.error_type:
        assert frame.failure is not None
        assert frame.failure.error_type == right.error_type
        return
    assert frame.failure is None
    assert frame.image_rgb_hwc_u8 is not None
    for (row, column), colour in zip(QUARTERS, right.colours, strict=bool(right.colours)):
        np.testing.assert_allclose(frame.image_rgb_hwc_u8[row, column], colour, atol=1)
    assert any(right.note in note for note in frame.notes) if right.note else not frame.notes


# Frames of clips of phones and cameras by ffprobe 5.1 (v:0): their number, the last time and the sum of all, in us.
CLIPS = {
    "05_default_juggle.mp4": (247, 10_250_000, 1_265_875_000),
    "100_0306.AVI": (41, 2_666_667, 54_666_667),
    "Issue_515_java.mp4": (109, 3_603_333, 196_373_333),
    "dolbyVision-hdr.MOV": (4, 100_000, 200_000),
    "fire2.mp4": (25, 2_279_844, 28_197_621),
    "h265_10bits.mp4": (30, 966_667, 14_500_000),
    "nasa_13013.mp4": (325, 12_960_000, 2_106_000_000),
    "no_duration.webm": (74, 4_872_000, 180_372_000),
    "realshort.mp4": (36, 1_165_889, 20_986_000),
    "sample.3gp": (74, 4_866_667, 180_066_667),
    "sleap_clip.mp4": (1500, 59_960_000, 44_970_000_000),
}


@pytest.mark.skipif(not PHONE_VIDEO.is_dir(), reason="the clips lie beside the repository, on some machines")
@pytest.mark.parametrize("name", CLIPS)
def test_clips_of_phones_and_cameras_have_the_times_that_ffprobe_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.media.video.rgb_of", lambda frame: (np.zeros((1, 1, 3), np.uint8), ()))
    frames = decoded(PHONE_VIDEO / name)
    times_us = [round(1e6 * (frame.pts_s or 0)) for frame in frames]
    number, last_us, sum_us = CLIPS[name]
    assert all(frame.failure is None for frame in frames)
    assert times_us == sorted(set(times_us))
    assert (len(frames), times_us[0]) == (number, 0)
    assert times_us[-1] == pytest.approx(last_us, abs=1)
    assert sum(times_us) == pytest.approx(sum_us, abs=number)


def table(folder: Path) -> Iterator[str]:
    """One line for each file: what came of it."""
    yield "| file | ok rows | pts_s | failed rows | notes |"
    yield "|---|---|---|---|---|"
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or kind_of(path.name) not in ("image", "video"):
            continue
        frames = decoded(path)
        good = [frame for frame in frames if frame.failure is None]
        times = [frame.pts_s for frame in good if frame.pts_s is not None]
        when = f"{times[0]:.2f} .. {times[-1]:.2f}" if times else ""
        failed = "; ".join(frame.failure.error for frame in frames if frame.failure is not None)
        notes = "; ".join(sorted({note for frame in good for note in frame.notes}))
        yield f"| {path.name} | {len(good)} | {when} | {failed} | {notes} |"


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)))
