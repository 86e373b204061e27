"""Find the one item that kills its worker: the suspects alone first, then halves of the shard, then frames of a video.

A pure state machine: it says what to try next and is told what came of it. Each try runs alone in a worker of its own,
so a death has one cause; a verdict is given only on an item that dies with nothing else around, and twice if the
death was silent: a kill from outside (an operator, the machine's memory) leaves no more trace than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.engine.heartbeat import Mark
from tasks.engine.job import Quarantine
from tasks.records import Shard

_MAX_SUSPECTS = 24


@dataclass(frozen=True, slots=True)
class Probe:
    """Try these entries of the shard; of a single video entry only the frames before ``end_frame``, if given."""

    entries: tuple[int, ...]
    end_frame: int | None = None


@dataclass(frozen=True, slots=True)
class Culprit:
    """The item that does it. ``rest``: it does it even when only decoded, so later frames are out of reach, too."""

    entry: int
    frame: int
    rest: bool


class Investigation:
    """Of one shard that lost its worker too often.

    Args:
        suspects: what the dead workers were busy with, the likeliest first; may be empty or wrong.
        quarantined: verdicts of earlier rounds; those items are left alone in probes.
    """

    def __init__(self, shard: Shard, suspects: Sequence[Mark], quarantined: Sequence[Quarantine] = ()) -> None:
        self._shard = shard
        self._frames = {mark.entry: mark.frame for mark in reversed(suspects) if mark.frame >= 0}
        self._quarantined = {(q.entry, q.frame): q for q in quarantined}
        touchable = [i for i in range(len(shard.entries)) if not self._is_settled(i)]
        first = list(dict.fromkeys(m.entry for m in suspects if m.entry in touchable))[:_MAX_SUSPECTS]
        rest = tuple(i for i in touchable if i not in first)
        # A stack. Suspects go one by one, not in halves: who survives costs a moment, every death costs a new worker.
        self._groups: list[tuple[int, ...]] = ([rest] if rest else []) + [(index,) for index in reversed(first)]
        self._frame_search: _FrameSearch | None = None
        self._died_silently: set[int] = set()
        self.culprit: Culprit | None = None

    def next(self) -> Probe | None:
        """What to try; None when there is a culprit, or nothing left to try (inconclusive)."""
        if self.culprit is not None:
            return None
        if self._frame_search is not None:
            return Probe((self._frame_search.entry,), self._frame_search.end_frame)
        return Probe(self._groups[-1]) if self._groups else None

    @property
    def inconclusive(self) -> bool:
        """Whether everything survived that was tried: no single item does it alone."""
        return self.culprit is None and self.next() is None

    def survived(self) -> None:
        """The last probe came back."""
        if self._frame_search is not None:
            self._frame_search.survived()
            self._judge_frames()
        else:
            self._groups.pop()

    def died(self, *, silently: bool = True) -> None:
        """The last probe took its worker with it, or hung (``silently``: by a death that anybody may have caused)."""
        if self._frame_search is not None:
            self._frame_search.died()
            self._judge_frames()
            return
        group = self._groups.pop()
        if len(group) == 1 and silently and group[0] not in self._died_silently:
            self._died_silently.add(group[0])
            self._groups.append(group)
            return
        if len(group) > 1:
            # The halves replace all other groups: the reason is in here.
            half = (len(group) + 1) // 2
            self._groups = [group[half:], group[:half]]
            return
        entry = self._shard.entries[group[0]]
        if entry.media == "image":
            self.culprit = self._verdict(group[0], entry.first_frame)
        else:
            hint = self._frames.get(group[0])
            self._frame_search = _FrameSearch(group[0], entry.first_frame, entry.end_frame, hint)
            self._judge_frames()

    def _judge_frames(self) -> None:
        search = self._frame_search
        if search is not None and search.found is not None:
            self.culprit = self._verdict(search.entry, search.found)

    def _verdict(self, entry: int, frame: int) -> Culprit:
        """A frame that was left alone and still does it, is out of reach for the decoder."""
        return Culprit(entry, frame, rest=(entry, frame) in self._quarantined)

    def _is_settled(self, index: int) -> bool:
        """Whether nothing of the entry is touched any more."""
        entry = self._shard.entries[index]
        verdict = self._quarantined.get((index, entry.first_frame))
        return verdict is not None and (entry.media == "image" or verdict.rest)


class _FrameSearch:
    """The smallest n such that the frames before n kill: then frame n - 1 is the one.

    Decoding runs from the first frame on, so a killer in decoding and one in the model behave alike: everything that
    ends before it survives, everything that includes it dies.
    """

    def __init__(self, entry: int, first_frame: int, end_frame: int | None, hint: int | None) -> None:
        self.entry = entry
        self._alive = first_frame  # the frames before this one survive
        self._dead = end_frame  # the frames before this one die; None: unknown, so gallop
        self._step = 1
        self._hints = [] if hint is None else [hint + 1, hint]  # if the first dies and the second lives, that's it

    @property
    def found(self) -> int | None:
        """The frame, once it is the only one left."""
        return self._dead - 1 if self._dead is not None and self._dead - self._alive <= 1 else None

    @property
    def end_frame(self) -> int:
        """Where to stop in the next probe."""
        while self._hints and not self._is_open(self._hints[0]):
            self._hints.pop(0)
        if self._hints:
            return self._hints[0]
        return self._alive + self._step if self._dead is None else (self._alive + self._dead) // 2

    def survived(self) -> None:
        """Nothing before ``end_frame`` does it."""
        self._alive, self._step = self.end_frame, 2 * self._step

    def died(self) -> None:
        """Something before ``end_frame`` does it."""
        self._dead = self.end_frame

    def _is_open(self, end: int) -> bool:
        return self._alive < end and (self._dead is None or end < self._dead)
