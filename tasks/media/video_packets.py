"""Which packets of a video went into the decoder, which of them came out as frames, and which never will.

Every packet takes a record along that its frame brings back out of the decoder, so a frame is known even where a file
stores no presentation times, or stores the same ones twice because two recordings were joined. Frames come out in the
order in which they are shown; what is still inside by then, though it should have been shown earlier, is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import StoreError
from tasks.media.jpeg import complaint_about_frame

_MAX_ERRORS = 8  # of the container in a row, before what follows is given up
_STEP_BACK_S = 1.0  # a clock that goes back by less, away from a keyframe, is jitter
_NEAR = 32  # packets: frames come out of the decoder that much later than data were lost before them
_DEPTH = 64  # packets: more than any decoder holds back
_NOT_CODED_BYTES = 16
_LEFT_OUT = "the decoder left it out"
# Of these a mark says that some of the stream was lost, not that this packet is short: the decoder is the judge.
_CHUNK_HEADER = 8  # bytes of an AVI's chunk before its data
_STREAMS = ("mpegts", "mpeg")


class NotShown:
    """Mark of a packet whose frame is not of the range."""


@dataclass(slots=True, eq=False)
class Sent:
    """A packet that shows a frame of the range. It travels through the decoder with the packet: PyAV knows the objects
    that do so by their identity, so each must be one of its own.

    Args:
        number: in the order of decoding, from the start of the range.
        part: of the recording, from 0; another one begins where the clock restarts.
        time: of presentation, by which the frames of a part are ordered, in ticks; None if the file does not tell.
        dts: time of decoding in ticks.
        damage: why its frame cannot be had, None as far as is known.
        is_tainted: data before it were damaged, and no keyframe came since.
        is_marked: the container marks the stream as damaged here.
        is_hidden: it shows nothing, as some packets of some codecs do.
        note: what is odd about it without harm.
    """

    number: int
    part: int
    time: int | None
    dts: int | None
    damage: str | None = None
    is_tainted: bool = False
    is_marked: bool = False
    is_hidden: bool = False
    note: str | None = None


class Times:
    """The times that a file stores for its packets, in ticks.

    AVI stores none: its index numbers the packets in the order of decoding, and that is what it is asked for (the
    demuxer only counts, which goes wrong behind damage).
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.is_avi = bool(container.format.name == "avi")
        entries = stream.index_entries if self.is_avi else ()
        self._positions = np.array([entry.pos + _CHUNK_HEADER for entry in entries], np.int64)
        self._ticks = np.array([entry.timestamp for entry in entries], np.int64)
        # FFmpeg leaves entries without data out, which show the frame before once more; a file from a pipe has no index
        self.is_exact = len(entries) > 1 and np.array_equal(self._ticks, np.arange(len(entries)))

    def of(self, packet: Any) -> int | None:
        """By which packets are ordered for showing; None where the file does not tell."""
        time: int | None = packet.pts
        return self.of_decoding(packet) if self.is_avi else time

    def of_decoding(self, packet: Any) -> int | None:
        """When it is due in the decoder."""
        dts: int | None = packet.dts
        if not self.is_avi or packet.pos is None:
            return dts
        at = int(np.searchsorted(self._positions, packet.pos))
        is_listed = at < len(self._positions) and self._positions[at] == packet.pos
        return int(self._ticks[at]) if is_listed else dts


class Ledger:
    """The packets of a range that went into the decoder and have not come out yet.

    Args:
        is_piece: the plan counted packets, so each of them has a number, also one that shows nothing.
    """

    def __init__(self, container: Any, stream: Any, *, is_piece: bool) -> None:
        self.times = Times(container, stream)
        self._ticks_back = _STEP_BACK_S / float(stream.time_base)
        context = stream.codec_context
        self._codec = context.name
        self._is_piece = is_piece
        self._is_ordered = not self.times.is_avi or not (context.has_b_frames or context.name in ("h264", "hevc"))
        self._trusts_marks = container.format.name not in _STREAMS
        self._pending: dict[int, Sent] = {}
        self._came_damaged: list[Sent] = []
        self._interlaced: set[int] = set()
        self._last_time: int | None = None
        self._is_tainted = False
        self._last_key = 0
        self.part = 0  # of the recording: how often its clock has restarted
        self.dts: list[int | None] = []  # of all packets, by number
        self._loss_at = self._mark_at = -_DEPTH  # number of the packet at which data were last known to be lost

    @property
    def num_sent(self) -> int:
        """Packets so far."""
        return len(self.dts)

    @property
    def is_near_loss(self) -> bool:
        """Whether data were lost shortly before the frames that come out now."""
        return len(self.dts) - self._loss_at < _NEAR

    @property
    def numbers_holes(self) -> bool:
        """Whether frames whose packets are gone keep their numbers here."""
        if self.times.is_avi:
            return self._is_ordered and self.times.is_exact
        return not self._trusts_marks and len(self.dts) - self._mark_at < _NEAR

    def enter(self, packet: Any) -> Sent:
        """Note a packet that is about to be decoded."""
        if packet.is_keyframe:
            self._is_tainted, self._last_key = False, len(self.dts)
        time = self.times.of(packet) if self._is_ordered else None
        dts = self.times.of_decoding(packet)
        sent = Sent(len(self.dts), self.part, time, dts, is_tainted=self._is_tainted)
        sent.is_hidden = not self._is_piece and shows_nothing(self._codec, packet)
        self.dts.append(dts)
        self._pending[sent.number] = sent
        if not packet.size:
            sent.damage = "the file holds no data for it"
        elif packet.is_corrupt:
            sent.is_marked, self._mark_at = True, sent.number
            self.note_loss()
            if self._trusts_marks:
                self.break_(sent, "the container marks the data as damaged")
        if packet.size and self._codec == "mjpeg" and sent.damage is None:
            damage, sent.note = complaint_about_frame(bytes(packet))
            if damage is not None:
                self.break_(sent, damage)
        return sent

    def follow_clock(self, packet: Any) -> None:
        """Find out, from every packet before it is entered, whether a new part of the recording begins."""
        dts = self.times.of_decoding(packet)
        time = packet.pts if dts is None else dts
        if time is None:
            return
        back = 0 if self._last_time is None else self._last_time - time
        if back > 0 and (packet.is_keyframe or back > self._ticks_back):
            self.part += 1
        self._last_time = time

    def break_(self, sent: Sent, damage: str) -> None:
        """A packet whose data are damaged; what is still inside the decoder, or refers to it, may show traces."""
        sent.damage = sent.damage or damage
        for other in self._pending.values():
            other.is_tainted = other.is_tainted or other is not sent
        self.note_loss()

    def note_loss(self) -> None:
        """Data were lost before the next packet."""
        self._loss_at, self._is_tainted = len(self.dts), True

    def leave(self, frame: Any) -> Sent:
        """The packet whose frame came out; one made up for a frame that belongs to none (a second one of a packet)."""
        sent = frame.opaque
        if not isinstance(sent, Sent) or self._pending.pop(sent.number, None) is None:
            return Sent(-1, self.part, frame.pts, None, is_tainted=self._is_tainted)
        if frame.interlaced_frame:
            self._interlaced.add(sent.number)
        return sent

    def drop(self, sent: Sent) -> None:
        """A frame that came out damaged: it is lost like one that never came."""
        after = [other for other in self._pending.values() if other.number > sent.number]
        for other in after:
            other.is_tainted = other.is_tainted or not sent.number < self._last_key <= other.number
        self._is_tainted = self._is_tainted or self._last_key <= sent.number
        self._loss_at = max(self._loss_at, sent.number)
        self._came_damaged.append(sent)

    def lost_before(self, sent: Sent) -> list[Sent]:
        """What should have been shown before a frame that came, in order; it is forgotten."""
        return self._taken(lambda other: _is_before(other, sent))

    def lost_at_end(self) -> list[Sent]:
        """What went in and never came, when nothing comes any more."""
        return self._taken(lambda other: True)

    def _taken(self, is_due: Any) -> list[Sent]:
        due = [other for other in self._pending.values() if is_due(other)]
        lost = self._came_damaged + [other for other in due if self._is_missing(other)]
        self._came_damaged = []
        for other in due:
            del self._pending[other.number]
        oldest = len(self.dts) - _DEPTH
        for number in [number for number, other in self._pending.items() if number < oldest and other.damage is None]:
            del self._pending[number]
        self._interlaced = {number for number in self._interlaced if number >= oldest}
        for other in lost:
            other.damage = other.damage or _LEFT_OUT
        return sorted(lost, key=lambda other: (other.part, other.time or 0, other.number))

    def _is_missing(self, other: Sent) -> bool:
        """Whether a packet without a frame is a loss; the second field of a picture and hidden packets are none."""
        if other.damage is not None or self._is_piece:
            return True
        return not other.is_hidden and other.time is not None and other.number - 1 not in self._interlaced


def shows_nothing(codec: str, packet: Any) -> bool:
    """Whether a packet holds a picture that is only referred to (VP8: RFC 6386, 9.1), or none at all.

    MPEG-4 stores a few bytes for a frame that is not coded, and for one that the packet before holds.
    """
    if codec == "vp8":
        return packet.size > 0 and not bytes(packet)[0] >> 4 & 1
    return codec == "mpeg4" and is_not_coded(packet.size)


def is_not_coded(num_bytes: int) -> bool:
    """Whether a packet of MPEG-4 is too short for a picture."""
    return num_bytes < _NOT_CODED_BYTES


def _is_before(other: Sent, sent: Sent) -> bool:
    if other.part == sent.part and (other.time is None or sent.time is None):
        return other.damage is not None and other.number < sent.number
    return (other.part, other.time or 0) < (sent.part, sent.time or 0)


def packets_of(container: Any, stream: Any, on_error: Callable[[Exception], bool]) -> Iterator[Any]:
    """Packets with data or with a time, to the end of the file; the empty one that ends a file is none.

    Args:
        on_error: told what the container says about damage; whether to read on behind it.
    """
    packets = iter(container.demux(stream))
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except StoreError:
            raise
        except IndexError:  # PyAV does not know the streams that begin in the middle of a broadcast: not ours
            packets = iter(container.demux(stream))
            continue
        except Exception as error:  # noqa: BLE001 - hostile bytes make demuxers raise anything
            if not on_error(error):
                return
            packets = iter(container.demux(stream))
            continue
        if packet.size or packet.dts is not None or packet.pts is not None:
            yield packet


class Demuxer:
    """The packets of one stream; goes on behind damage of the container.

    ``trouble`` is what it said when it gave up, None while it has not.
    """

    def __init__(self, container: Any, stream: Any, ledger: Ledger) -> None:
        self._container, self._stream, self._ledger = container, stream, ledger
        self._errors = 0
        self.trouble: str | None = None

    def packets(self) -> Iterator[Any]:
        """From where the container stands to the end of the file."""
        for packet in packets_of(self._container, self._stream, self._goes_on):
            self._errors = 0
            yield packet

    def _goes_on(self, error: Exception) -> bool:
        self._errors += 1
        self._ledger.note_loss()
        self.trouble = words_of(error) if self._errors == _MAX_ERRORS else None
        return self.trouble is None


def words_of(error: Exception) -> str:
    """What FFmpeg says, without error numbers and log lines that differ between runs."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())[:200].rstrip(".")
