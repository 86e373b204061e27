"""Opening video files: which containers are read, what a file's own header says about its length."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import av

# Containers of moving pictures only. FFmpeg also reads play lists and concatenation scripts, which name other files and
# addresses: a "video" that holds such a text must not make a worker open them.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,ogg,asf,mxf,mxf_opatom,"
    "h264,hevc,m4v,mjpeg,ivf,dv,gif,mp3,wav,flac,aac"
)
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_container(source: BinaryIO) -> Any:
    """The opened container; raises what FFmpeg raises, and the store's errors from reading."""
    return av.open(
        source,
        container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
        metadata_errors="replace",
    )


def is_cut_off(source: BinaryIO, stream: Any) -> bool:
    """Whether the file is shorter than its own structures say: an interrupted upload or recording."""
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    needed = max(declared_bytes(source.read(4096)) or 0, _indexed_bytes(stream))
    return size_bytes < needed


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

    RIFF: 8 bytes and the size in the header (a recorder that died leaves 0). Matroska: the end of the Segment element,
    whose size is unknown (all bits set) in live recordings; EBML sizes are variable-length integers (RFC 8794, 4.1).
    """
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size else None
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
