"""Cut long videos at keyframes, with frame indices that are exact in presentation order.

The container's index tells which packets are keyframes, in decoding order. It becomes presentation order like this:
a frame shown before a keyframe is either decoded before it, or is one of the keyframe's *leading* frames (open GOP,
common in HEVC): decoded after it, shown before it. So the index of a keyframe is the count of shown packets before it
plus the count of its leading frames, which follow it closely; they are found by reading a few packets there. Frames
that an edit list hides are not counted. Where the index is missing or incomplete (Matroska keeps keyframes only; AVI
may have none) all packets are read once without decoding any.

Every cut is tried: a seek to its pts must arrive at the keyframe or before it. A video whose frames cannot be counted
for sure this way stays in one piece: where a packet may be no frame (fields, hidden packets), where the clock restarts,
where the container says that data were lost, and where a file stores no presentation times and does not need to.

What a header says about the number of frames is an estimate of work; where the file is too small for it to be true, the
packets are counted.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, cast

import av
import av.container
import av.error
import numpy as np
from av.index import IndexEntry
from av.video.stream import VideoStream

from infra.store_reader import SeekableReader
from tasks.media.video_fields import may_be_fields
from tasks.media.video_files import open_container
from tasks.media.video_packets import Times, is_not_coded, packets_of
from tasks.media.video_streams import chosen_stream

LEADING_WINDOW = 40  # packets after a keyframe among which its leading frames lie: twice the largest reorder depth (16)
READ_BYTES = 1 << 20

# One packet is one shown frame. VP8 is missing on purpose: its packets may hold frames that are never shown.
_COUNTABLE = frozenset({"h264", "hevc", "av1", "vp9", "mjpeg", "mpeg4", "msmpeg4v3", "mpeg2video", "prores", "ffv1"})

_HOLDS_FRAMES = ("mov", "matroska")  # containers whose packets are frames, also where those are stored as two fields
_LEAST_BYTES = 16  # of a frame in a file, about: a claim of more frames is not believed


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


class SliceReader(SeekableReader):
    """A part of a seekable file as a file of its own (a video inside a tar)."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        super().__init__(length)
        self._file, self._offset = file, offset

    def read_at(self, position: int, length: int) -> bytes:
        self._file.seek(self._offset + position)
        return self._file.read(length)


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
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with open_container(file) as container:
            stream = chosen_stream(container)
            if stream is None or stream.codec_context is None:
                return [_whole(1)]  # one failed row
            count = _estimated_frames(container, stream, size_bytes)
            if 0 < count < 1.5 * frames_per_piece:
                return [_whole(count)]
            if not _is_countable(container, stream):
                return [_whole(count or _scanned(file)[1])]
            keyframes, total = _indexed(container, stream, frames_per_piece) or _scanned(file)
            if not keyframes or keyframes[0].frame != 0 or total < 1.5 * frames_per_piece:
                return [_whole(total or count)]
            file.seek(0)
            with open_container(file) as fresh:
                return _pieces(
                    _tried(fresh, cast(VideoStream, chosen_stream(fresh)), keyframes, frames_per_piece), total
                )
    except (av.error.FFmpegError, EOFError, ValueError):
        return [_whole(0)]


def _whole(num_frames: int) -> Piece:
    return Piece(0, None, None, num_frames)


def _estimated_frames(container: av.container.InputContainer, stream: VideoStream, size_bytes: int) -> int:
    """From the header alone; 0 if it does not say, or says what a file of this size cannot hold."""
    count = stream.frames
    rate = stream.average_rate or stream.guessed_rate
    if not count and rate and stream.duration and stream.time_base:
        count = int(stream.duration * stream.time_base * rate)
    elif not count and rate and container.duration:
        count = int(container.duration / av.time_base * rate)
    return count if count <= size_bytes // _LEAST_BYTES else 0


def _is_countable(container: av.container.InputContainer, stream: VideoStream) -> bool:
    """Whether each packet is one frame, and the order of showing is known."""
    codec = stream.codec_context
    is_h264 = codec.name == "h264"
    if container.format.name == "avi" and (codec.has_b_frames or is_h264):
        return False  # AVI stores no presentation times
    if is_h264 and not set(_HOLDS_FRAMES) & set(container.format.name.split(",")) and may_be_fields(container, stream):
        return False
    return codec.name in _COUNTABLE or stream.codec.canonical_name in _COUNTABLE


def _indexed(
    container: av.container.InputContainer, stream: VideoStream, frames_per_piece: int
) -> tuple[list[Keyframe], int] | None:
    """Keyframes worth cutting at and the number of frames, from the container's index; None if it is not complete."""
    entries = list(stream.index_entries)
    if not stream.frames or len(entries) != stream.frames:
        return None
    if _hides_frames(stream, [entry.size for entry in entries]):
        return [], len(entries)
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
    packets, times = packets_of(container, stream, _never), Times(container, stream)
    key = next((packet for packet in packets if packet.dts is None or packet.dts >= timestamp), None)
    time = None if key is None else times.of(key)
    if key is None or time is None or not key.is_keyframe or key.dts != timestamp:
        return None
    leading = 0
    for _, packet in zip(range(LEADING_WINDOW), packets, strict=False):
        shown = times.of(packet)
        if packet.size and shown is not None and shown < time and not packet.is_discard:
            leading += 1
    return Keyframe(shown_before + leading, time)


def _scanned(file: BinaryIO) -> tuple[list[Keyframe], int]:
    """Keyframes and the number of frames, by reading every packet; no keyframes if the packets do not tell.

    The file is opened anew: a seek to the start may silently pass over packets before the first keyframe.
    """
    shown: list[int] = []
    keys: list[int] = []
    sizes: list[int] = []
    is_sure, latest = True, None
    file.seek(0)
    with open_container(file) as container:
        stream = cast(VideoStream, chosen_stream(container))
        times = Times(container, stream)
        errors: list[Exception] = []

        def give_up(error: Exception) -> bool:
            errors.append(error)
            return False

        for packet in packets_of(container, stream, give_up):
            if packet.is_discard:
                continue
            time, decoded = times.of(packet), times.of_decoding(packet)
            restarts = latest is not None and decoded is not None and decoded < latest
            is_sure = is_sure and time is not None and not packet.is_corrupt and not restarts
            is_sure = is_sure and (bool(shown) or packet.is_keyframe)
            latest = decoded if decoded is not None else latest
            shown.append(time or 0)
            sizes.append(packet.size)
            if packet.is_keyframe:
                keys.append(time or 0)
        is_sure = is_sure and not errors and not _hides_frames(stream, sizes)
    ordered = np.sort(np.array(shown, np.int64))
    if not keys or not is_sure or (np.diff(ordered) == 0).any():
        return [], len(shown)
    frames = np.searchsorted(ordered, np.array(keys, np.int64))
    return [Keyframe(int(frame), pts) for frame, pts in zip(frames, keys, strict=True)], len(shown)


def _never(error: Exception) -> bool:
    """Nothing is read on behind damage."""
    return False


def _hides_frames(stream: VideoStream, sizes: list[int]) -> bool:
    """Whether some packets may show nothing, by their sizes alone."""
    return stream.codec_context.name == "mpeg4" and any(is_not_coded(size) for size in sizes)


def _tried(
    container: av.container.InputContainer, stream: VideoStream, keyframes: list[Keyframe], frames_per_piece: int
) -> list[Keyframe]:
    """The first keyframe, and of the others those that are far enough apart and that a seek does not overshoot."""
    chosen, times = [keyframes[0]], Times(container, stream)
    for keyframe in keyframes[1:]:
        if keyframe.frame - chosen[-1].frame < frames_per_piece:
            continue
        container.seek(keyframe.pts, stream=stream, backward=True)
        arrived = next(packets_of(container, stream, _never), None)
        time = None if arrived is None else times.of(arrived)
        if arrived is not None and time is not None and arrived.is_keyframe and time <= keyframe.pts:
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
