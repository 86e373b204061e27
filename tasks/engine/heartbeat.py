"""What a worker is doing right now, in a small mapped file that outlives the worker's process.

A process that aborts, is killed, or hangs in native code cannot answer a call any more, but what it wrote into mapped
memory a moment before stays readable for others on the machine. So before a thread touches an item it writes down
which one; after a death that list is a hint (several threads were busy, and a kill from outside blames nobody), which
the dispatcher confirms by running the suspects alone. A crash with a signal also leaves "last words": the signal and
the thread that caught it, which mostly names the one item.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tasks.engine.thread_usage import Usage, other_usage, thread_usage

_MAGIC = b"vmbeats3"
_HEADER = struct.Struct("<8sIIIQd240s")  # magic, pid, slots, marks per slot, items done, time of the last one, outage
_COST = struct.Struct("<12sdd")  # stage, most processor time of one item, largest item
_SLOT = struct.Struct("<QQdIId12s")  # thread, its number in the system, since, waits for a store, marks, size, stage
_WAITS_AT = 24  # of a slot
_MARK = struct.Struct("<Bii")  # shard, entry, frame
_SHARDS, _SHARD_BYTES, _STAGES = 8, 80, 8
_COSTS_AT = _HEADER.size + _SHARDS * _SHARD_BYTES
_SLOTS_AT = _COSTS_AT + _STAGES * _COST.size
_LONG_S = 1.0  # a step that sleeps at that age, or no step at all: then it is asked what other threads do
_FOLDER_PREFIX = "visionmill-heartbeat-"


class Mark(NamedTuple):
    """One item: a frame of an entry of a shard. Frame -1: the entry as a whole; entry -1: the shard as a whole."""

    shard_id: str
    entry: int = -1
    frame: int = -1


@dataclass(frozen=True, slots=True)
class Working:
    """One busy thread.

    Attributes:
        stage, marks: what it does to which items, since ``since_s`` (seconds since the epoch).
        thread: as Python names it.
        in_store: it waits for a store, which has time limits of its own.
        cpu_s, state: of the thread, see :class:`tasks.engine.thread_usage.Usage`.
        size: of the largest of the items, as far as it says how long they take (pixels, bytes of a stage); else 0.
    """

    stage: str
    marks: tuple[Mark, ...]
    since_s: float
    thread: int
    in_store: bool = False
    cpu_s: float | None = None
    state: str = ""
    size: float = 0.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """The most of items that are through a stage: processor time that one took in its thread, and its size."""

    longest_s: float
    largest: float

    def __or__(self, other: StepCost) -> StepCost:
        return StepCost(max(self.longest_s, other.longest_s), max(self.largest, other.largest))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's heartbeat as read from outside.

    Attributes:
        costs: by stage.
        elsewhere: what threads do that are at no step, and processes below; only asked for if a step sleeps.
    """

    pid: int
    items_done: int
    last_done_s: float  # seconds since the epoch; 0 before the first
    working: tuple[Working, ...]
    outage: str = ""  # in words, while a store does not answer this worker
    read_s: float = 0.0  # seconds since the epoch
    costs: Mapping[str, StepCost] = field(default_factory=dict)
    elsewhere: Mapping[int, Usage] | None = None

    def oldest(self, shard_id: str | None = None) -> Working | None:
        """The thread that is busy for the longest time (with an item of that shard)."""
        busy = [w for w in self.working if shard_id is None or any(m.shard_id == shard_id for m in w.marks)]
        return min(busy, key=lambda w: w.since_s, default=None)


@dataclass(frozen=True, slots=True)
class LastWords:
    """What a crash with a signal left behind."""

    cause: str  # e.g. "Aborted", "Segmentation fault"
    thread: int | None  # the thread that caught it


class HeartbeatWriter:
    """The writer's side, one per worker process. Writing costs about a microsecond and never waits for a disk.

    Args:
        num_threads: threads that may be busy at once; further ones go unrecorded.
        max_marks: items that one thread may hold at once (the largest batch).
    """

    def __init__(self, num_threads: int = 32, max_marks: int = 256, *, catch_signals: bool = True) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        self._num_threads, self._max_marks = num_threads, max_marks
        self._slot_bytes = _SLOT.size + max_marks * _MARK.size
        size = _SLOTS_AT + num_threads * self._slot_bytes
        with (self.folder / "heartbeat").open("w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._lock = threading.Lock()
        self._shards: dict[str, int] = {}
        self._slots: dict[int, int] = {}  # by thread
        self._costs: dict[str, StepCost] = {}
        self._done, self._last_done_s = 0, 0.0
        self._outages: dict[str, str] = {}
        self._write_header()
        self._is_alone = catch_signals
        if catch_signals:
            self._last_words = (self.folder / "last_words").open("w")  # open while the process lives
            faulthandler.enable(self._last_words, all_threads=True)

    def begin_shard(self, shard_id: str) -> None:
        """Make room for a shard's name; call before its items are marked."""
        with self._lock:
            free = sorted(set(range(_SHARDS)) - set(self._shards.values()))
            if shard_id in self._shards or not free:
                return
            self._shards[shard_id] = free[0]
            at = _HEADER.size + free[0] * _SHARD_BYTES
            name = shard_id.encode()[:_SHARD_BYTES]
            self._map[at : at + _SHARD_BYTES] = name.ljust(_SHARD_BYTES, b"\0")

    def end_shard(self, shard_id: str) -> None:
        """Free the shard's name."""
        with self._lock:
            self._shards.pop(shard_id, None)

    @contextmanager
    def working(self, stage: str, marks: Iterable[Mark], size: float = 0.0) -> Iterator[None]:
        """Record that this thread works on these items, until the block ends. ``size``: see :class:`Working`."""
        thread = threading.get_ident()
        at = self._slot_of(thread)
        if at is None:
            yield
            return
        known = [(self._shards[m.shard_id], m.entry, m.frame) for m in marks if m.shard_id in self._shards]
        known = known[: self._max_marks]
        known_as, name = (thread, threading.get_native_id()), stage.encode()[:12]
        began_s = time.thread_time()
        _SLOT.pack_into(self._map, at, *known_as, time.time(), 0, 0, size, name)
        for i, mark in enumerate(known):
            _MARK.pack_into(self._map, at + _SLOT.size + i * _MARK.size, *mark)
        _SLOT.pack_into(self._map, at, *known_as, time.time(), 0, len(known), size, name)
        try:
            yield
            self._note_cost(stage, StepCost((time.thread_time() - began_s) / max(1, len(known)), size))
        finally:
            _SLOT.pack_into(self._map, at, *known_as, 0.0, 0, 0, 0.0, b"")

    @contextmanager
    def in_store(self) -> Iterator[None]:
        """Record that what this thread works on waits for a store, until the block ends."""
        slot = self._slots.get(threading.get_ident())
        if slot is None:
            yield
            return
        at = self._place_of(slot) + _WAITS_AT
        struct.pack_into("<I", self._map, at, 1)
        try:
            yield
        finally:
            struct.pack_into("<I", self._map, at, 0)

    def store_is_silent(self, uri: str, outage: object | None) -> None:
        """Note what is known of a store's outage; None ends it."""
        with self._lock:
            self._outages.pop(uri, None)
            if outage is not None:
                self._outages[uri] = str(outage)
            self._write_header()

    def count(self, items: int) -> None:
        """Note that so many items left the last stage."""
        with self._lock:
            self._done, self._last_done_s = self._done + items, time.time()
            self._write_header()

    def read(self) -> Heartbeat | None:
        """The own heartbeat, as others see it."""
        beat = read_heartbeat(self.folder)
        # The other threads of a process that is not the worker's own have their own business.
        return beat if beat is None or self._is_alone else replace(beat, elsewhere=None)

    def close(self) -> None:
        """Stop recording and remove the files."""
        if faulthandler.is_enabled() and hasattr(self, "_last_words"):
            faulthandler.disable()
            self._last_words.close()
        remove_heartbeat(self.folder)

    def _write_header(self) -> None:
        outage = next(iter(self._outages.values()), "").encode()[:240]
        sizes = self._num_threads, self._max_marks
        _HEADER.pack_into(self._map, 0, _MAGIC, os.getpid(), *sizes, self._done, self._last_done_s, outage)

    def _note_cost(self, stage: str, cost: StepCost) -> None:
        before = self._costs.get(stage)
        if before is not None and before | cost == before:
            return
        with self._lock:
            more = self._costs[stage] = self._costs.get(stage, cost) | cost
            number = list(self._costs).index(stage)
            if number < _STAGES:
                at = _COSTS_AT + number * _COST.size
                _COST.pack_into(self._map, at, stage.encode()[:12], more.longest_s, more.largest)

    def _slot_of(self, thread: int) -> int | None:
        slot = self._slots.get(thread)
        if slot is None:
            with self._lock:
                if len(self._slots) >= self._num_threads:
                    return None
                slot = self._slots[thread] = len(self._slots)
        return self._place_of(slot)

    def _place_of(self, slot: int) -> int:
        return _SLOTS_AT + slot * self._slot_bytes


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The heartbeat in a folder, of a living or a dead process of this machine; None if there is none."""
    try:
        data = (folder / "heartbeat").read_bytes()
        magic, pid, num_threads, max_marks, done, last_done_s, outage = _HEADER.unpack_from(data)
    except (OSError, struct.error):
        return None
    if magic != _MAGIC:
        return None
    names = [_text(data[at : at + _SHARD_BYTES]) for at in range(_HEADER.size, _COSTS_AT, _SHARD_BYTES)]
    working, numbers, read_s = [], set(), time.time()
    for i in range(num_threads):
        at = _SLOTS_AT + i * (_SLOT.size + max_marks * _MARK.size)
        thread, number, since_s, waits, count, size, stage = _SLOT.unpack_from(data, at)
        if since_s <= 0.0:
            continue
        numbers.add(number)
        raw = [_MARK.unpack_from(data, at + _SLOT.size + j * _MARK.size) for j in range(min(count, max_marks))]
        marks = tuple(Mark(names[shard % _SHARDS], entry, frame) for shard, entry, frame in raw)
        used = thread_usage(pid, number)
        working.append(Working(_text(stage), marks, since_s, thread, bool(waits), used.cpu_s, used.state, size))
    sleeps = any(w.state == "S" and not w.in_store and read_s - w.since_s > _LONG_S for w in working)
    elsewhere = other_usage(pid, numbers) if sleeps or not working else None
    return Heartbeat(pid, done, last_done_s, tuple(working), _text(outage), read_s, _costs_in(data), elsewhere)


def _costs_in(data: bytes) -> dict[str, StepCost]:
    found = (_COST.unpack_from(data, _COSTS_AT + i * _COST.size) for i in range(_STAGES))
    return {_text(stage): StepCost(longest_s, largest) for stage, longest_s, largest in found if _text(stage)}


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("utf-8", "replace")


def read_last_words(folder: Path) -> LastWords | None:
    """Signal and thread of a crash; None when the process left none (killed from outside, or alive)."""
    try:
        text = (folder / "last_words").read_text("utf-8", "replace")
    except OSError:
        return None
    cause = re.search(r"Fatal Python error: ([^\n]+)", text)
    if cause is None:
        return None
    thread = re.search(r"Current thread 0x([0-9a-f]+)", text)
    return LastWords(cause.group(1).strip(), int(thread.group(1), 16) if thread else None)


def remove_heartbeat(folder: Path) -> None:
    """Remove a worker's files once they have been read."""
    if folder.name.startswith(_FOLDER_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(older_than_s: float = 600.0) -> None:
    """Remove what dead workers left in the temporary folder that gave no sign of life for ten minutes.

    Drivers remove what their own workers leave; this is for those that died with their driver.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).split("-")[0]
        with suppress(OSError):
            newest_s = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest_s > older_than_s and not _is_alive(pid):
                remove_heartbeat(folder)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
