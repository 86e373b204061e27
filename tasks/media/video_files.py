"""Opening video files: which containers are read, what a file's own header says about its length."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import av

# Containers of moving pictures only. FFmpeg also reads play lists and concatenation scripts, which name other files and
# addresses: a "video" that holds such a text must not make a worker open them.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,ogg,asf,mxf,mxf_opatom,"
    "h264,hevc,m4v,mjpeg,ivf,dv,gif,mp3,wav,flac,aac"
)
_UNKNOWN_SIZE = 0xFFFFFFF0  # of a RIFF: from here on nobody meant it
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

# FFmpeg reserves an index for as many frames as a header claims. 256 MiB hold one of five days at 25 frames a second,
# and a plane of 16K video; without a limit a file of a few kilobytes takes gigabytes and seconds.
_MAX_ALLOCATION_BYTES = 256 << 20
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(_MAX_ALLOCATION_BYTES))

_MAX_BOXES = 10_000
_SMALL_BYTES, _MAX_FRAGMENTS = 8 << 20, 4  # a larger file is not read for the sake of all of its pieces
_NESTED = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})


class ForgedIndexError(ValueError):
    """Raised for a header that claims more frames than the file has bytes for."""


def open_container(source: BinaryIO) -> Any:
    """The opened container.

    Raises:
        ForgedIndexError: an MP4 whose index cannot be true.
        Exception: what FFmpeg raises, and the store's errors from reading.
    """
    _refuse_forged_index(source)
    return av.open(
        source,
        container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
        metadata_errors="replace",
    )


def _refuse_forged_index(source: BinaryIO) -> None:
    """Frames of equal size need no table in an MP4 (ISO 14496-12, 8.7.3 and 8.8.8): few bytes can claim any number."""
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(4)
    if source.read(4) in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        handler = b""
        fragments = _MAX_BOXES if size_bytes <= _SMALL_BYTES else _MAX_FRAGMENTS
        for kind, start in _boxes(source, 0, size_bytes, {b"": _MAX_BOXES, b"moof": fragments}):
            source.seek(start)
            body = source.read(12)
            if kind == b"hdlr":
                handler = body[8:]
                continue
            of_equal_size, count = (body[4:8], body[8:12]) if kind == b"stsz" else (b"\0\0\0\1", body[4:8])
            claimed = int.from_bytes(of_equal_size, "big") * int.from_bytes(count, "big")
            if claimed > size_bytes and (kind == b"trun" or handler == b"vide"):
                frames = int.from_bytes(count, "big")
                raise ForgedIndexError(f"its header claims {frames} frames, more than {size_bytes} bytes can hold")
    source.seek(0)


def _boxes(source: BinaryIO, at: int, end: int, left: dict[bytes, int]) -> Iterator[tuple[bytes, int]]:
    """Kind and first byte of content of the boxes of an MP4 that claim frames; ``left`` counts down, by kind."""
    while at + 8 <= end and left[b""] > 0:
        source.seek(at)
        head = source.read(16)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), at + 16
        after = end if size == 0 else at + size
        left[b""] -= 1
        if kind == b"moof":
            left[kind] -= 1
            if left[kind] < 0:
                return
        if kind in _NESTED:
            yield from _boxes(source, start, min(after, end), left)
        elif kind in (b"hdlr", b"stsz", b"trun"):
            yield kind, start
        if after <= at:
            return
        at = after


def is_cut_off(source: BinaryIO, stream: Any, num_frames: int) -> bool:
    """Whether the file is shorter than its own structures say: an interrupted upload or recording.

    The size in a RIFF header (AVI) is no proof: who writes to a pipe cannot know it. Where as many frames were there as
    the header promises, or the list of frames ends inside the file, the file is whole.

    Args:
        num_frames: how many were read.
    """
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    head = source.read(64 << 10)
    needed = max(declared_bytes(head) or 0, _indexed_bytes(stream))
    if head[:4] == b"RIFF" and size_bytes < needed:
        frames_end = _list_end(head, b"movi")
        return num_frames < stream.frames and not (frames_end is not None and frames_end <= size_bytes)
    return size_bytes < needed


def _list_end(head: bytes, kind: bytes) -> int | None:
    """Where a list of a RIFF file ends by its own size; None if it is not in the head."""
    at = 12
    while at + 12 <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        if name == b"LIST" and head[at + 8 : at + 12] == kind:
            return at + 8 + size
        at += 8 + size + size % 2
    return None


def declared_end_s(container: Any, stream: Any) -> float | None:
    """When the last frame ends by a Matroska header, in seconds; None for other files and where it isn't stated.

    Other containers either have a complete index (MP4), or durations that are guesses (MPEG-TS, AVI).
    """
    if "matroska" not in container.format.name:
        return None
    stated = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = stated.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        alone = len(container.streams) == 1 and container.duration
        return container.duration / av.time_base if alone else None


def declared_bytes(head: bytes) -> int | None:
    """The length that an AVI or Matroska header states, None where it states none.

    RIFF: 8 bytes and the size in the header (a recorder that died leaves 0, one that writes to a pipe all ones).
    Matroska: the end of the Segment element,
    whose size is unknown (all bits set) in live recordings; EBML sizes are variable-length integers (RFC 8794, 4.1).
    """
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if 0 < size < _UNKNOWN_SIZE else None
    if head[:4] != _EBML:
        return None
    header_size, position = _ebml_size(head, 4)
    if header_size is None or head[position + header_size : position + header_size + 4] != _SEGMENT:
        return None
    segment_size, start = _ebml_size(head, position + header_size + 4)
    return None if segment_size is None else start + segment_size


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A variable-length size and the position behind it; None for "unknown"."""
    if at >= len(data) or data[at] == 0:
        return None, at + 1
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _indexed_bytes(stream: Any) -> int:
    """Where the last sample of the container's index ends (MP4: complete when opened; other kinds: as far as read)."""
    return max((entry.pos + entry.size for entry in stream.index_entries), default=0)
