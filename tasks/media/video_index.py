"""Cut long videos at keyframes, with frame indices that are exact in presentation order.

The container's index tells which packets are keyframes, in decoding order. It becomes presentation order like this:
a frame shown before a keyframe is either decoded before it, or is one of the keyframe's *leading* frames (open GOP,
common in HEVC): decoded after it, shown before it. So the index of a keyframe is the count of shown packets before it
plus the count of its leading frames, which follow it closely; they are found by reading a few packets there. Frames
that an edit list hides are not counted. Where the index is missing or incomplete (Matroska keeps keyframes only; AVI
may have none) all packets are read once without decoding any.

Every cut is tried: a seek to its pts must arrive at the keyframe or before it. A video whose frames cannot be counted
for sure this way stays in one piece.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import av
import av.container
import av.error
import numpy as np
from av.index import IndexEntry
from av.video.stream import VideoStream

from tasks.media.video_files import open_container

LEADING_WINDOW = 40  # packets after a keyframe among which its leading frames lie: twice the largest reorder depth (16)
READ_BYTES = 1 << 20

# One packet is one shown frame. VP8 is missing on purpose: its packets may hold frames that are never shown.
_COUNTABLE = frozenset({"h264", "hevc", "av1", "vp9", "mjpeg", "mpeg4", "msmpeg4v3", "mpeg2video", "prores", "ffv1"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of frames: ``first_frame`` is a keyframe's index in presentation order, ``first_pts`` its time to seek to.

    ``end_frame`` is one past the last frame, None for "to the end"; ``num_frames`` is exact but for the last piece of a
    damaged video, and an estimate (0 if nothing is known) for an uncut one.
    """

    first_frame: int
    end_frame: int | None
    first_pts: int | None
    num_frames: int


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A place where decoding can start: frame index in presentation order, and pts in the stream's time base."""

    frame: int
    pts: int


class SliceReader(io.RawIOBase):
    """A part of a seekable file as a file of its own (a video inside a tar)."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(min(len(view), self._length - self._at), 0))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def cut_video(file: BinaryIO, frames_per_piece: int) -> list[Piece]:
    """Pieces of at least ``frames_per_piece`` frames (fewer in the last), each beginning at a keyframe.

    Returns one uncut piece for a video that is short, cannot be opened, has no keyframes, begins before its first
    keyframe, or whose frames cannot be counted without decoding. Never raises for what is wrong with the video itself:
    the worker that decodes it reports that.

    Args:
        file: seekable reader; about two blocks are read for the index and two for each cut, everything when the
            container has no complete index.
        frames_per_piece: frames after which the next keyframe begins a new piece.
    """
    try:
        with open_container(file) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                return [_whole(0)]
            count = _estimated_frames(container, stream)
            if 0 < count < 1.5 * frames_per_piece or not _is_countable(container, stream):
                return [_whole(count)]
            keyframes, total = _indexed(container, stream, frames_per_piece) or _scanned(file)
            if not keyframes or keyframes[0].frame != 0 or total < 1.5 * frames_per_piece:
                return [_whole(total or count)]
            file.seek(0)
            with open_container(file) as fresh:
                return _pieces(_tried(fresh, fresh.streams.video[0], keyframes, frames_per_piece), total)
    except (av.error.FFmpegError, EOFError, ValueError):
        return [_whole(0)]


def _whole(num_frames: int) -> Piece:
    return Piece(0, None, None, num_frames)


def _estimated_frames(container: av.container.InputContainer, stream: VideoStream) -> int:
    """From the header alone; 0 if it does not say."""
    if stream.frames:
        return stream.frames
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        return 0
    if stream.duration and stream.time_base:
        return int(stream.duration * stream.time_base * rate)
    return int(container.duration / av.time_base * rate) if container.duration else 0


def _is_countable(container: av.container.InputContainer, stream: VideoStream) -> bool:
    codec = stream.codec_context
    if container.format.name == "avi" and codec.has_b_frames:
        return False  # AVI stores no pts: what the demuxer makes up is not the presentation order
    return codec.name in _COUNTABLE or stream.codec.canonical_name in _COUNTABLE


def _indexed(
    container: av.container.InputContainer, stream: VideoStream, frames_per_piece: int
) -> tuple[list[Keyframe], int] | None:
    """Keyframes worth cutting at and the number of frames, from the container's index; None if it is not complete."""
    entries = list(stream.index_entries)
    if not stream.frames or len(entries) != stream.frames:
        return None
    shown_before = 0
    next_cut = 0
    keyframes: list[Keyframe] = []
    for position, entry in enumerate(entries):
        if entry.is_keyframe and entry.is_discard and not keyframes:
            keyframes.append(Keyframe(0, entry.timestamp))  # hidden by an edit list, but decoding starts there
            next_cut = frames_per_piece
        elif entry.is_keyframe and shown_before >= next_cut and not entry.is_discard:
            found = _keyframe_at(container, stream, entry.timestamp, _inside(entries, position), shown_before)
            if found is not None:
                keyframes.append(found)
                next_cut = found.frame + frames_per_piece
            elif not keyframes:
                return None  # not even the first frame is where the index says
        elif not keyframes and not entry.is_discard:
            return [], 0  # shown frames before the first keyframe
        shown_before += not entry.is_discard
    return keyframes, shown_before


def _inside(entries: list[IndexEntry], position: int) -> int:
    """A time to seek to that leads to the keyframe at ``position``.

    The index holds decoding times, a seek takes presentation times: the keyframe's own decoding time may lead to the
    group of frames before it. That of a later frame in its group lies behind its presentation time and before the next
    keyframe's.
    """
    target = position
    for later in range(position + 1, min(position + LEADING_WINDOW // 2, len(entries))):
        if entries[later].is_keyframe:
            break
        target = later
    return entries[target].timestamp


def _keyframe_at(
    container: av.container.InputContainer, stream: VideoStream, timestamp: int, target: int, shown_before: int
) -> Keyframe | None:
    """Look at the packets of the keyframe that is decoded at ``timestamp``; None if the index does not lead to it."""
    container.seek(target, stream=stream, backward=True)
    packets = container.demux(stream)
    key = next((packet for packet in packets if packet.dts is None or packet.dts >= timestamp), None)
    if key is None or not key.is_keyframe or key.pts is None or key.dts != timestamp:
        return None
    leading = 0
    for _, packet in zip(range(LEADING_WINDOW), packets, strict=False):
        if packet.size and packet.pts is not None and packet.pts < key.pts and not packet.is_discard:
            leading += 1
    return Keyframe(shown_before + leading, key.pts)


def _scanned(file: BinaryIO) -> tuple[list[Keyframe], int]:
    """Keyframes and the number of frames, by reading every packet; no keyframes if the packets do not tell.

    The file is opened anew: a seek to the start may silently pass over packets before the first keyframe.
    """
    times: list[int] = []
    keys: list[int] = []
    first_is_key: bool | None = None
    file.seek(0)
    with open_container(file) as container:
        for packet in _packets(container, container.streams.video[0]):
            if packet.is_discard:
                continue
            if packet.pts is None:
                return [], 0
            first_is_key = packet.is_keyframe if first_is_key is None else first_is_key
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    ordered = np.sort(np.array(times, np.int64))
    if not keys or not first_is_key or (np.diff(ordered) == 0).any():
        return [], len(times)
    frames = np.searchsorted(ordered, np.array(keys, np.int64))
    return [Keyframe(int(frame), pts) for frame, pts in zip(frames, keys, strict=True)], len(times)


def _packets(container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Packets with data, up to the end or to where the file breaks."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.error.InvalidDataError:
        return


def _tried(
    container: av.container.InputContainer, stream: VideoStream, keyframes: list[Keyframe], frames_per_piece: int
) -> list[Keyframe]:
    """The first keyframe, and of the others those that are far enough apart and that a seek does not overshoot."""
    chosen = [keyframes[0]]
    for keyframe in keyframes[1:]:
        if keyframe.frame - chosen[-1].frame < frames_per_piece:
            continue
        container.seek(keyframe.pts, stream=stream, backward=True)
        arrived = next(container.demux(stream), None)
        if arrived is not None and arrived.pts is not None and arrived.is_keyframe and arrived.pts <= keyframe.pts:
            chosen.append(keyframe)
    return chosen


def _pieces(keyframes: list[Keyframe], total: int) -> list[Piece]:
    """A tail of less than half a piece is not worth a seek: it stays with the piece before."""
    if len(keyframes) > 1 and 2 * (total - keyframes[-1].frame) < keyframes[-1].frame - keyframes[-2].frame:
        keyframes = keyframes[:-1]
    ends = [keyframe.frame for keyframe in keyframes[1:]]
    pieces = []
    for keyframe, end in zip(keyframes, [*ends, None], strict=True):
        first_pts = keyframe.pts if keyframe.frame else None
        pieces.append(Piece(keyframe.frame, end, first_pts, (total if end is None else end) - keyframe.frame))
    return pieces
