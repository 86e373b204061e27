"""Which stream of a video file is read, what is said about it, and how its frames become RGB."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from tasks.media.orientation import display_orientation, from_exif

_HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # transfer characteristics, ITU-T H.273


def chosen_stream(container: Any) -> Any | None:
    """The stream that players show: the first that is marked as default, else the first; None without pictures.

    A cover picture in a music file is no video.
    """
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    marked = [stream for stream in streams if stream.disposition & av.stream.Disposition.default]
    return next(iter(marked or streams), None)


def stream_notes(container: Any, stream: Any) -> tuple[str, ...]:
    """What a row must say about the stream as a whole: what is in the file and not in the pixels."""
    context, notes = stream.codec_context, []
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if len(videos) > 1:
        notes.append(f"{len(videos)} video streams: number {stream.index} is read")
    aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio
    if aspect and aspect > 0 and aspect != 1:
        notes.append(f"pixels are not square ({aspect.numerator}:{aspect.denominator}): shown as stored")
    if context.color_trc in _HDR:
        notes.append(f"high dynamic range, {_HDR[context.color_trc]}: shown without tone mapping")
    has_alpha = context.format is not None and any(part.is_alpha for part in context.format.components)
    if has_alpha or stream.metadata.get("alpha_mode") == "1":
        notes.append("transparency is left aside")
    return tuple(notes)


def rgb_of(frame: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """A decoded frame upright, (H, W, 3) uint8, and notes.

    YUV is converted with the matrix the stream names (BT.601 if it names none).
    """
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    orientation = 1 if matrix is None else display_orientation(bytes(matrix))
    notes = []
    if orientation is None:
        notes.append("shown as stored: its display matrix is no quarter turn")
    elif orientation != 1:
        pixels = np.ascontiguousarray(from_exif(pixels, orientation))
        notes.append(f"turned by its display matrix (like EXIF orientation {orientation})")
    if frame.interlaced_frame:
        notes.append("interlaced: both fields as stored")
    return pixels, tuple(notes)
