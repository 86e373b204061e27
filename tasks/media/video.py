"""Frames of one entry's range of a video, each with its number and its time, and a record for what is missing.

A frame's number is its rank in the order of showing, so that the pieces [0, a), [a, b), ... of a video give exactly the
frames of the whole, B-frames, open groups of pictures and variable frame rates included. Decoding uses one thread: a
worker owns one core, and the result must not depend on how many there are.

Damage is an error of the demuxer or decoder, a frame flagged corrupt, a frame that never came, a packet without data,
or a file shorter than its own header says. Decoding goes on behind it with the next frame that can be decoded; each run
of missing frames is one :class:`VideoGap`. H.264 is decoded leniently (its strict mode rejects healthy streams that
begin in an open group of pictures), other codecs strictly. Damage that a codec decodes without noticing can't be seen
by anybody; so what follows damage, up to the next keyframe, carries a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from infra.errors import StoreError
from tasks.media.options import DecodeOptions
from tasks.media.video_clock import Clock
from tasks.media.video_files import declared_end_s, is_cut_off, open_container
from tasks.media.video_gaps import VideoGap
from tasks.media.video_packets import Demuxer, Ledger, NotShown, Sent, words_of
from tasks.media.video_streams import chosen_stream, rgb_of, stream_notes
from tasks.records import Entry

_TOLERANCE_S = 0.5
_SECONDS_BACK = (0, 2, 10)  # how much earlier to look for a keyframe when a seek landed behind its target
_AFTER_DAMAGE = "after damaged data: may show traces of them up to the next keyframe"
_MARKED = "the container marks the data as damaged here; the decoder found nothing wrong"


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One decoded frame.

    Args:
        index: position in the order of showing, from the start of the video.
        pts_s: presentation time in seconds; None where the file has no time stamps.
        rgb_hwc_u8: (H, W, 3) uint8, upright, C-contiguous.
        notes: what decoding had to do.
    """

    index: int
    pts_s: float | None
    rgb_hwc_u8: np.ndarray
    notes: tuple[str, ...]


class _EndError(Exception):
    """Raised where nothing of a range can be had, or nothing more; carries the gap that stands for it."""

    def __init__(self, index: int, error_type: str, why: str, pts_s: float | None = None) -> None:
        super().__init__(why)
        self.gap = VideoGap(index, None, pts_s, None, error_type, why)


def decode_video(source: BinaryIO, entry: Entry, options: DecodeOptions) -> Iterator[VideoFrame | VideoGap]:
    """The frames of ``entry`` whose number is a multiple of the stride, in the order of showing, and what is missing.

    Args:
        source: seekable reader of the whole file.
        entry: ``first_frame`` and ``first_pts`` belong to the same keyframe; ``end_frame`` is one past the last.
        options: the stride counts on the number in the whole video, so that its pieces agree.

    Raises:
        StoreError: when the file can't be read any more.
    """
    try:
        container = open_container(source)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes make demuxers raise anything
        why = f"cannot be opened as a video ({words_of(error)})"
        yield _EndError(entry.first_frame, "NotAVideo", why).gap
        return
    with container:
        try:
            stream = _usable_stream(container, entry, options)
            yield from _Range(container, stream, source, entry, options).items()
        except _EndError as end:
            yield end.gap


def _usable_stream(container: Any, entry: Entry, options: DecodeOptions) -> Any:
    stream = chosen_stream(container)
    if stream is None:
        kind = "only sound" if container.streams.audio else "no pictures"
        raise _EndError(entry.first_frame, "NoVideoStream", f"the file holds {kind}, no video")
    if stream.codec_context is None:
        raise _EndError(entry.first_frame, "UnknownCodec", "no decoder for this video's codec")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > options.max_pixels:
        message = f"frames of {width} x {height} = {width * height} pixels; the limit is {options.max_pixels}"
        raise _EndError(entry.first_frame, "TooManyPixels", message)
    return stream


class _Range:
    """One pass over an entry's range of a stream."""

    def __init__(self, container: Any, stream: Any, source: BinaryIO, entry: Entry, options: DecodeOptions) -> None:
        self._container, self._stream, self._source = container, stream, source
        self._entry, self._options = entry, options
        self._first_time: int | None = entry.first_pts
        self._has_begun = False  # whether the keyframe at which the range begins went in
        self._next = entry.first_frame
        self._num_given = 0
        self._notes = stream_notes(container, stream)
        self._hole_note: tuple[str, ...] = ()
        self._ledger = Ledger(container, stream, is_piece=entry.first_frame > 0)
        self._clock = Clock(stream, self._ledger)
        self._demuxer = Demuxer(container, stream, self._ledger)
        context = stream.codec_context
        context.thread_count, context.thread_type = 1, "NONE"
        context.copy_opaque = True  # frames bring back what travels with their packet
        strict = {} if context.name == "h264" else {"err_detect": "explode"}
        context.options = {"max_pixels": str(options.max_pixels), **strict}

    def items(self) -> Iterator[VideoFrame | VideoGap]:
        """Frames and gaps in order; what is missing at the end is the last item, and _EndError may stand for it."""
        last_dts: int | None = None
        for packet in self._packets():
            last_dts = packet.dts if packet.dts is not None else last_dts
            for frame in self._decoded(packet):
                yield from self._shown(frame)
                if self._is_done:
                    return
        yield from self._rest(last_dts)

    @property
    def _is_done(self) -> bool:
        return self._entry.end_frame is not None and self._next >= self._entry.end_frame

    # --- packets in

    def _packets(self) -> Iterator[Any]:
        """From the range's keyframe on."""
        if self._first_time is None or self._entry.first_frame == 0:
            yield from self._demuxer.packets()
            return
        ticks_per_s = round(1 / self._stream.time_base)
        for back_s in _SECONDS_BACK:
            self._seek(max(self._first_time - back_s * ticks_per_s, self._stream.start_time or 0))
            packets = self._demuxer.packets()
            first = next(packets, None)
            time = None if first is None else self._ledger.times.of(first)
            if time is not None and time <= self._first_time:
                yield first
                yield from packets
                return
        message = "the keyframe at which this part of the video starts cannot be found"
        start_s = float(self._first_time * self._stream.time_base)
        raise _EndError(self._next, "KeyframeMissing", message, start_s)

    def _seek(self, time: int) -> None:
        try:
            self._container.seek(time, stream=self._stream, backward=True)
        except StoreError:
            raise
        except Exception as error:
            raise _EndError(self._next, "VideoBroken", words_of(error)) from error
        self._stream.codec_context.flush_buffers()

    def _decoded(self, packet: Any) -> Sequence[Any]:
        """The frames that come out when a packet goes in (they are of earlier packets, mostly).

        What belongs to the part before the range may lack its references, so its errors are none.
        """
        self._ledger.follow_clock(packet)
        is_ours = not self._is_leading(packet) and not packet.is_discard
        sent = self._ledger.enter(packet) if is_ours else None
        packet.opaque = sent or NotShown()
        if not packet.size:
            return ()
        try:
            return list(packet.decode())
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - hostile bytes make decoders raise anything
            if sent is not None:
                self._ledger.break_(sent, words_of(error))
            return ()

    def _is_leading(self, packet: Any) -> bool:
        """Whether a packet's frame is shown before the range: of a group of pictures that began earlier."""
        time = self._ledger.times.of(packet)
        if not self._has_begun and packet.is_keyframe and (self._first_time is None or time == self._first_time):
            self._has_begun, self._first_time = True, time
            return False
        if self._first_time is None:
            return not self._has_begun  # the file begins in the middle: nothing to refer to yet
        return self._ledger.part == 0 and time is not None and time < self._first_time

    # --- frames out

    def _shown(self, frame: Any) -> Iterator[VideoFrame | VideoGap]:
        """What a frame that came out of the decoder gives: what is missing before it, and itself."""
        if isinstance(frame.opaque, NotShown):
            return
        sent = self._ledger.leave(frame)
        damage = sent.damage or ("the decoder marks the frame as damaged" if frame.is_corrupt else None)
        kept = (f"damaged: {damage}",) if damage is not None and self._options.damaged == "keep" else ()
        if damage is not None and not kept:
            sent.damage = damage
            self._ledger.drop(sent)
            return
        yield from self._gap_before(sent)
        if not self._is_done:
            yield from self._given(sent, frame, kept)

    def _given(self, sent: Sent, frame: Any, kept: tuple[str, ...]) -> Iterator[VideoFrame]:
        pts_s = self._clock.show(sent, frame.pts, self._next - self._entry.first_frame)
        if self._next % self._options.stride == 0:
            try:
                pixels, notes = rgb_of(frame)
            except Exception as error:  # noqa: BLE001 - an odd pixel format, or a size that cannot be converted
                sent.damage = words_of(error)
                self._ledger.drop(sent)
                return
            if sent.note is not None:
                notes += (sent.note,)
            if sent.is_marked:
                notes += (_MARKED,)
            if sent.is_tainted:
                notes += (_AFTER_DAMAGE,)
            yield VideoFrame(
                self._next, pts_s, pixels, (*self._notes, *notes, *self._clock.notes, *self._hole_note, *kept)
            )
        self._next += 1
        self._num_given += 1

    def _gap_before(self, sent: Sent) -> Iterator[VideoGap]:
        """The frames that should have come before this one: their packets are known, or it is known that data are lost.

        Frames whose packets are gone keep numbers only where those are the same for everybody who reads the file: by
        the index of an AVI, and in a stream that says itself that data are lost, which is never cut into pieces.
        Elsewhere the time that they would have taken is told.
        """
        lost = self._ledger.lost_before(sent)
        times = [self._clock.time_of(other) for other in lost]
        hole = self._clock.hole_before(sent, times[-1] if times else self._before_s())
        self._hole_note = ()
        if hole and self._ledger.numbers_holes:
            times += hole
        elif hole and self._ledger.is_near_loss and times:
            yield from self._gap(times, lost[0].damage or "", until_s=hole[-1])
            return
        elif hole and self._ledger.is_near_loss:
            self._hole_note = (f"data were lost before this frame: from {hole[0]:.3f} s to {hole[-1]:.3f} s",)
        yield from self._gap(times, (lost[0].damage if lost else None) or "the data were lost")

    def _before_s(self) -> float | None:
        """The time of the last frame; of a piece that has given none yet, a step before its first."""
        if self._clock.last_s is not None or self._entry.first_pts is None:
            return self._clock.last_s
        return float(self._entry.first_pts * self._stream.time_base) - self._clock.step_s

    def _gap(self, times: list[float | None], why: str, until_s: float | None = None) -> Iterator[VideoGap]:
        """The record of frames that would have been shown at these times, if one was wanted and is of the range."""
        if not times:
            return
        first, stride, end = self._next, self._options.stride, self._entry.end_frame
        last = first + len(times) - 1 if end is None else min(first + len(times), end) - 1
        self._next = last + 1
        wanted = -(-first // stride) * stride
        if wanted <= last:
            to_s = until_s if until_s is not None else times[last - first]
            yield VideoGap(wanted, last, times[0], to_s, "FramesMissing", why)

    # --- the end

    def _rest(self, last_dts: int | None) -> Iterator[VideoFrame | VideoGap]:
        """The frames that the decoder still holds at the end of the file, and what is missing there.

        Where the file ends too early, packets of frames shown between them may be missing. Those would have had a dts
        after the last one, and no frame is shown before its dts: up to there nothing is missing.
        """
        damage = self._file_damage()
        for frame in self._held():
            if damage and last_dts is not None and frame.pts is not None and frame.pts > last_dts:
                break
            yield from self._shown(frame)
            if self._is_done:
                return
        lost, end = self._ledger.lost_at_end(), self._entry.end_frame
        if damage is None and lost:
            yield from self._gap([self._clock.time_of(other) for other in lost], lost[0].damage or "")
        if damage is None and end is not None and self._next < end:
            damage = f"the file ends here, but frames up to {end - 1} were listed"
        if damage is not None:
            start_s = self._clock.time_of(lost[0]) if lost else None
            raise _EndError(self._next, "VideoBroken", damage, start_s)
        if self._next == self._entry.first_frame:
            raise _EndError(self._next, "NoFrames", "the video holds no frame that can be decoded")

    def _held(self) -> Sequence[Any]:
        try:
            return list(self._stream.codec_context.decode(None))
        except Exception:  # noqa: BLE001 - after an error nothing may come any more
            return ()

    def _file_damage(self) -> str | None:
        """At the end of the file: why it can't be whole, None where nothing speaks against it."""
        end, num_sent = self._entry.end_frame, self._ledger.num_sent
        if self._demuxer.trouble is not None:
            return self._demuxer.trouble
        if end is None and is_cut_off(self._source, self._stream, num_sent + self._entry.first_frame):
            return "the file is shorter than its header says: it was cut off"
        if end is None and self._ends_early():
            return "nothing readable follows, but the file's header says that the video goes on"
        if end is not None and num_sent < end - self._entry.first_frame:
            return f"the file ends here, but frames up to {end - 1} were listed"
        return None

    def _ends_early(self) -> bool:
        """Whether the header promises clearly more time than the last frame, shown as long as the longest, can fill."""
        stated_s, last_s = declared_end_s(self._container, self._stream), self._clock.last_stored_s
        if stated_s is None or last_s is None or self._num_given < 2:
            return False
        return stated_s - (last_s + self._clock.longest_s) > _TOLERANCE_S
