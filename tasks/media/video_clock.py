"""When a frame is shown, in seconds that never run backwards."""

from __future__ import annotations

from typing import Any

from tasks.media.video_packets import Ledger, Sent

RESTARTED = "the clock of the recording restarted: times go on from the part before"
_MAX_HOLE = 10_000  # frames
_HELD = "its stored time lies before that of the frame before it: held"


class Clock:
    """Stored presentation times, chained where the clock of a recording restarts.

    AVI stores none: the n-th frame that is shown takes the n-th time of the index.
    """

    def __init__(self, stream: Any, ledger: Ledger) -> None:
        self._base, self._ledger = stream.time_base, ledger
        self._counts, self._context = ledger.times.is_avi, stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        self.step_s = float(1 / rate) if rate else 0.0
        self._part = 0
        self._offset_s = 0.0
        self.last_s: float | None = None  # of the last frame
        self.last_stored_s: float | None = None
        self.longest_s = 0.0  # between two frames
        self.notes: tuple[str, ...] = ()

    def show(self, sent: Sent, frame_time: int | None, position: int) -> float | None:
        """The time of the next frame; ``notes`` say what was done to it.

        Args:
            frame_time: ticks, what the decoder made of it where the packet has no time of its own.
            position: of the frame in the range, from 0.
        """
        stored_s = self._stored_s(sent, frame_time, position)
        if sent.part != self._part and stored_s is not None:
            self._part = sent.part
            self._offset_s = 0.0 if self.last_s is None else self.last_s + self.step_s - stored_s
        time_s = None if stored_s is None else stored_s + self._offset_s
        if time_s is None and self.last_s is not None:
            time_s = self.last_s + self.step_s
        self.notes = (RESTARTED,) if self._part else ()
        if time_s is not None and self.last_s is not None:
            if time_s < self.last_s:
                time_s, self.notes = self.last_s, (*self.notes, _HELD)
            self.longest_s = max(self.longest_s, time_s - self.last_s)
        self.last_s, self.last_stored_s = time_s, stored_s
        return time_s

    def time_of(self, sent: Sent) -> float | None:
        """When a frame that is lost would have been shown; None where that is not known."""
        if sent.time is None or sent.part != self._part:
            return None
        return float(sent.time * self._base) + self._offset_s

    def hole_before(self, sent: Sent, before_s: float | None) -> list[float | None]:
        """The times at which frames should have been shown between one moment and a frame, by the rate of the stream.

        A jump that is too long to be filled counts as one frame.
        """
        time_s = self.time_of(sent)
        if time_s is None or before_s is None or time_s - before_s <= 1.5 * self.step_s or not self.step_s:
            return []
        count = round((time_s - before_s) / self.step_s) - 1
        return [before_s + self.step_s * (i + 1) for i in range(count if count <= _MAX_HOLE else 1)]

    def _stored_s(self, sent: Sent, frame_time: int | None, position: int) -> float | None:
        ticks = sent.time if sent.time is not None else frame_time
        if self._counts and self._context.has_b_frames:
            ticks = self._ledger.dts[position] if position < len(self._ledger.dts) else None
        elif self._counts:
            ticks = sent.dts
        return None if ticks is None else float(ticks * self._base)
