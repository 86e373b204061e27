"""Frames of one entry's range of a video, identified by their presentation time stamps.

A frame's index is its rank among the time stamps of the stream's packets, so that the pieces [0, a), [a, b), ... of a
video give exactly the frames of the whole, B-frames, open groups of pictures and variable frame rates included.
Decoding uses one thread: a worker owns one core, and the result must not depend on how many there are.

Damage ends an entry: the frames before it are given, then one failure at the frame where it broke. Damage is an error
of the demuxer or decoder, a frame or packet flagged corrupt, a frame that never came, or a file shorter than its own
header says. H.264 is decoded leniently (its strict mode rejects healthy streams that begin in an open group of
pictures), other codecs strictly. Damage that a codec decodes without noticing can't be seen by anybody.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import av
import numpy as np

from infra.errors import StoreError
from tasks.media.options import MAX_PIXELS
from tasks.media.orientation import display_orientation, from_exif
from tasks.media.video_files import declared_end_s, is_cut_off, open_container
from tasks.records import Entry

_INVISIBLE_PACKETS = {"vp8", "mpeg4"}  # codecs with packets that show nothing: a missing frame is no damage there
_NO_PTS = -(1 << 63)  # below every time stamp
_TOLERANCE_S = 0.5
_SECONDS_BACK = (0, 2, 10)  # how much earlier to look for a keyframe when a seek landed behind its target


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One decoded frame.

    Args:
        index: position in presentation order, from the start of the video.
        pts_s: presentation time in seconds, as stored; None where the file has no time stamps.
        rgb_hwc_u8: (H, W, 3) uint8, upright, C-contiguous.
        notes: what decoding had to do.
    """

    index: int
    pts_s: float | None
    rgb_hwc_u8: np.ndarray
    notes: tuple[str, ...]


class BrokenVideoError(Exception):
    """Raised where a video can't be decoded further; ``index`` is the first frame that is missing."""

    def __init__(self, error_type: str, message: str, index: int, pts_s: float | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.index = index
        self.pts_s = pts_s


def decode_video(
    source: BinaryIO, entry: Entry, *, stride: int = 1, max_pixels: int = MAX_PIXELS
) -> Iterator[VideoFrame]:
    """The frames of ``entry`` whose global index is a multiple of ``stride``, in presentation order.

    Args:
        source: seekable reader of the whole file.
        entry: ``first_frame`` and ``first_pts`` belong to the same keyframe; ``end_frame`` is one past the last.
        stride: every how many-th frame; counted on the global index, so that pieces of a video agree.
        max_pixels: frames that promise more are refused before they are decoded.

    Raises:
        BrokenVideoError: after the last good frame, with the index of the first missing one.
        StoreError: when the file can't be read any more.
    """
    try:
        container = open_container(source)
    except StoreError:
        raise
    except Exception as error:
        raise BrokenVideoError(
            "NotAVideo", f"cannot be opened as a video ({_words(error)})", entry.first_frame
        ) from error
    with container:
        stream = _video_stream(container, entry, max_pixels)
        yield from _Range(container, stream, source, entry, max_pixels).frames(stride)


def _video_stream(container: Any, entry: Entry, max_pixels: int) -> Any:
    """The first stream of moving pictures; a cover picture in a music file is none."""
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kind = "only sound" if container.streams.audio else "no pictures"
        raise BrokenVideoError("NoVideoStream", f"the file holds {kind}, no video", entry.first_frame)
    stream = streams[0]
    if stream.codec_context is None:
        raise BrokenVideoError("UnknownCodec", "no decoder for this video's codec", entry.first_frame)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        message = f"frames of {width} x {height} = {width * height} pixels; the limit is {max_pixels}"
        raise BrokenVideoError("TooManyPixels", message, entry.first_frame)
    return stream


class _Range:
    """One pass over an entry's range of a stream."""

    def __init__(self, container: Any, stream: Any, source: BinaryIO, entry: Entry, max_pixels: int) -> None:
        self._container, self._stream, self._source, self._entry = container, stream, source, entry
        self._first_pts: int | None = entry.first_pts
        self._ranks: list[int] | None = []  # sorted time stamps of the range's packets; None once one has none
        self._next = entry.first_frame
        self._converter = _Converter(stream)
        context = stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        strict = {} if context.name == "h264" else {"err_detect": "explode"}
        context.options = {"max_pixels": str(max_pixels), **strict}

    def frames(self, stride: int) -> Iterator[VideoFrame]:
        end = self._entry.end_frame
        for frame in self._in_order():
            if end is not None and self._next >= end:
                return
            index = self._index_of(frame)
            if end is not None and index >= end:
                break  # the last frames of the range are packets that show nothing
            self._next = index + 1
            if index % stride == 0:
                rgb, notes = self._guarded(lambda frame=frame: self._converter.rgb(frame), index)  # type: ignore[misc]
                yield VideoFrame(index, self._seconds(frame.pts), rgb, notes)
            if end is not None and self._next >= end:
                return
        self._check_complete()

    def _in_order(self) -> Iterator[Any]:
        """Decoded frames of the range, in presentation order; raises BrokenVideoError behind the last whole one."""
        last_dts: int | None = None
        for packet in self._packets():
            if packet.size == 0:  # the end of the file
                yield from self._rest(packet, last_dts)
                return
            leading = self._is_leading(packet)
            if not leading and not packet.is_discard:
                self._note(packet.pts)
            last_dts = packet.dts if packet.dts is not None else last_dts
            yield from self._decode(packet, leading)

    def _rest(self, flush: Any, last_dts: int | None) -> Iterator[Any]:
        """The frames that the decoder still holds at the end of the file.

        Where the file ends too early, packets of frames shown between them may be missing. Those would have had a dts
        after the last one, and no frame is shown before its dts: up to there nothing is missing.
        """
        damage = self._missing()
        for frame in self._decode(flush, leading=False):
            if damage and last_dts is not None and frame.pts is not None and frame.pts > last_dts:
                break
            yield frame
        if damage:
            raise self._broken(damage)

    def _packets(self) -> Iterator[Any]:
        """The stream's packets from the range's keyframe on; the flush packet last."""
        packets = iter(self._container.demux(self._stream))
        if self._first_pts is not None and self._entry.first_frame > 0:
            packets = self._from_keyframe(self._first_pts)
        while True:
            packet = self._guarded(lambda: next(packets, None), self._next)
            if packet is None:
                return
            if self._first_pts is None and packet.is_keyframe:
                self._first_pts = packet.pts if packet.pts is not None else _NO_PTS
            yield packet

    def _from_keyframe(self, pts: int) -> Iterator[Any]:
        """Packets from the last keyframe at or before ``pts``."""
        ticks_per_s = round(1 / self._stream.time_base)
        for back_s in _SECONDS_BACK:
            self._guarded(
                lambda back_s=back_s: self._container.seek(  # type: ignore[misc]
                    pts - back_s * ticks_per_s, stream=self._stream, backward=True
                ),
                self._next,
            )
            self._stream.codec_context.flush_buffers()
            packets = iter(self._container.demux(self._stream))
            first = self._guarded(lambda packets=packets: next(packets, None), self._next)  # type: ignore[misc]
            if first is not None and first.pts is not None and first.pts <= pts:
                yield first
                yield from packets
                return
        message = "the keyframe at which this part of the video starts cannot be found"
        raise BrokenVideoError("KeyframeMissing", message, self._next, self._seconds(pts))

    def _is_leading(self, packet: Any) -> bool:
        if self._first_pts is None:
            return not packet.is_keyframe  # the file begins in the middle: nothing to refer to yet
        return packet.pts is not None and packet.pts < self._first_pts

    def _decode(self, packet: Any, leading: bool) -> Iterator[Any]:
        """The frames that come out when a packet goes in (they are of earlier packets, mostly).

        A leading packet belongs to the part before the range; it may lack its references, so its errors are none.
        """
        damage: str | None = None
        frames: list[Any] = []
        try:
            frames = packet.decode()
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below, after the frames that came before the damage
            damage = _words(error)
        if packet.size and packet.is_corrupt:
            damage = damage or "the container marks the data as damaged"
        for frame in frames:
            if self._is_before_range(frame):
                continue
            if frame.is_corrupt:
                damage = damage or "the decoder marks the frame as damaged"
                break
            if damage and not leading and not _is_before(frame, packet):
                break
            yield frame
        if damage and not leading:
            yield from self._held_back(packet)
            raise self._broken(damage)

    def _is_before_range(self, frame: Any) -> bool:
        return frame.pts is not None and self._first_pts is not None and frame.pts < self._first_pts

    def _held_back(self, damaged: Any) -> list[Any]:
        """After damage: the whole frames that waited in the decoder for their turn to be shown, up to the first gap."""
        try:
            held = self._stream.codec_context.decode(None)
        except Exception:  # noqa: BLE001 - after an error nothing may come any more
            return []
        whole: list[Any] = []
        for frame in (frame for frame in held if not self._is_before_range(frame)):
            rank = self._rank_of(frame)
            if frame.is_corrupt or rank != self._next + len(whole) or not _is_before(frame, damaged):
                break
            whole.append(frame)
        return whole

    def _note(self, pts: int | None) -> None:
        if pts is None:
            self._ranks = None
        elif self._ranks is not None:
            insort(self._ranks, pts)

    def _rank_of(self, frame: Any) -> int | None:
        if self._ranks is None or frame.pts is None:
            return None
        return self._entry.first_frame + bisect_left(self._ranks, frame.pts)

    def _index_of(self, frame: Any) -> int:
        index = self._rank_of(frame)
        if index is None or index < self._next:
            return self._next  # no time stamps, or two frames with one: count
        if index > self._next and self._stream.codec_context.name not in _INVISIBLE_PACKETS:
            raise self._broken("the decoder left a frame out")
        return index

    def _missing(self) -> str | None:
        """At the end of the file: why it can't be whole, None where nothing speaks against it."""
        end = self._entry.end_frame
        if end is None and is_cut_off(self._source, self._stream):
            return "the file is shorter than its header says: it was cut off"
        if end is None and self._ends_early():
            return "nothing readable follows, but the file's header says that the video goes on"
        if end is not None and self._ranks is not None and len(self._ranks) < end - self._entry.first_frame:
            return f"the file ends here, but frames up to {end - 1} were listed"
        return None

    def _check_complete(self) -> None:
        """After the last frame: did every one that was listed come?"""
        end, name = self._entry.end_frame, self._stream.codec_context.name
        if self._next == self._entry.first_frame and not (end is not None and name in _INVISIBLE_PACKETS):
            raise BrokenVideoError("NoFrames", "the video holds no frame that can be decoded", self._next)
        if end is not None and self._next < end and name not in _INVISIBLE_PACKETS:
            raise self._broken(f"the file ends here, but frames up to {end - 1} were listed")

    def _ends_early(self) -> bool:
        """Whether the header promises clearly more time than the last frame, shown as long as the longest, can fill."""
        stated_s = declared_end_s(self._container, self._stream)
        if stated_s is None or not self._ranks or len(self._ranks) < 2:
            return False
        longest = max(later - earlier for earlier, later in pairwise(self._ranks))
        end_s = float((self._ranks[-1] + longest) * self._stream.time_base)
        return stated_s - end_s > _TOLERANCE_S

    def _broken(self, words: str) -> BrokenVideoError:
        position = self._next - self._entry.first_frame
        pts = self._ranks[position] if self._ranks is not None and position < len(self._ranks) else None
        return BrokenVideoError(
            "VideoBroken", f"the video breaks at frame {self._next}: {words}", self._next, self._seconds(pts)
        )

    def _guarded(self, step: Callable[[], Any], index: int) -> Any:
        try:
            return step()
        except (StoreError, BrokenVideoError):
            raise
        except Exception as error:
            self._next = index
            raise self._broken(_words(error)) from error

    def _seconds(self, pts: int | None) -> float | None:
        return None if pts is None else float(pts * self._stream.time_base)


class _Converter:
    """Decoded frames -> upright RGB."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def rgb(self, frame: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        """(H, W, 3) uint8 and notes. YUV is converted with the matrix the stream names (BT.601 if it names none)."""
        pixels = frame.to_ndarray(format="rgb24", threads=1)
        orientation = _orientation(frame)
        notes = []
        if orientation is None:
            notes.append("shown as stored: its display matrix is no quarter turn")
        elif orientation != 1:
            pixels = np.ascontiguousarray(from_exif(pixels, orientation))
            notes.append(f"turned by its display matrix (like EXIF orientation {orientation})")
        if frame.interlaced_frame:
            notes.append("interlaced: both fields as stored")
        return pixels, tuple(notes)


def _is_before(frame: Any, packet: Any) -> bool:
    """Whether a frame is shown before the packet's; what comes later may refer to it."""
    return frame.pts is not None and packet.pts is not None and frame.pts < packet.pts


def _orientation(frame: Any) -> int | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return 1 if matrix is None else display_orientation(bytes(matrix))


def _words(error: Exception) -> str:
    """What FFmpeg says, without error numbers and log lines that differ between runs."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())[:200].rstrip(".")
