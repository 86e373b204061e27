"""The lease: who writes an output, and until when. It spares waste; safety never rests on it (the commit decides).

``_lease.json`` is changed by compare-and-swap only. A holder renews it every third of its time to live, so that its
etag changes. Whoever wants it and finds it held

1. takes it at once if the holder released it, or ran on this very machine and its process is gone;
2. else watches the etag by its own monotonic clock, never comparing two machines' wall clocks: an etag that changes
   means a living holder (refused), one that stays for the holder's whole time to live means a dead one (taken over).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

from infra.errors import Conflict, LeaseHeld, ObjectGone, StoreError
from infra.store import Store
from infra.telling import tell
from tasks.output.layout import LEASE_KEY

TIME_TO_LIVE_S = 45.0
WATCH_INTERVAL_S = 1.0
_seen: dict[str, tuple[str, float]] = {}  # by output: etag of a lease held elsewhere, monotonic time of its first sight


@dataclass(frozen=True, slots=True)
class Holder:
    """What stands in ``_lease.json``.

    Args:
        run_id: of the run that writes.
        host, pid, process_started: the driver's process, to recognise a dead one on the same machine.
        since: ISO time, UTC, when the lease was taken; for people.
        time_to_live_s: how long the etag may stay unchanged before others may take over.
        renewals: counts up, so that the content (and the etag) changes at each renewal.
        token: of this holding; tells two holdings of one process apart.
        released: the holder is done.
    """

    run_id: str
    host: str
    pid: int
    process_started: float
    since: str
    time_to_live_s: float
    renewals: int
    token: str
    released: bool = False

    def encode(self, **changes: object) -> bytes:
        """The JSON bytes, with fields changed."""
        return json.dumps({**asdict(self), **changes}).encode()

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (pid {self.pid}), since {self.since}"

    @property
    def process_is_gone(self) -> bool:
        """Whether it ran on this machine and does so no more; False when that can't be told."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started) > 1.0
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    @property
    def is_over(self) -> bool:
        """Whether nobody holds it any more, as far as that can be told at once."""
        return self.released or self.process_is_gone


class Lease:
    """A held lease; made by :func:`hold_lease`. ``lost`` is set when somebody took it over."""

    def __init__(self, store: Store, holder: Holder, etag: str) -> None:
        self.holder = holder
        self.lost = threading.Event()
        self._store = store
        self._etag = etag
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew_until_done, name="lease", daemon=True)
        self._thread.start()

    def _renew_until_done(self) -> None:
        renewals = 0
        while not self._done.wait(self.holder.time_to_live_s / 3):
            renewals += 1
            try:
                with self._lock:
                    self._etag = self._store.compare_and_swap(
                        LEASE_KEY, self.holder.encode(renewals=renewals), self._etag
                    )
            except Conflict:
                self.lost.set()
                return
            except StoreError:
                continue  # the store is troubled: the work itself will say so; the next renewal may succeed

    def lost_to(self) -> LeaseHeld | None:
        """Who took the lease over, as an error that ends the run; None while it is held."""
        if not self.lost.is_set():
            return None
        taken = read_lease(self._store)
        who = "somebody" if taken is None else str(taken[0])
        return LeaseHeld(
            f"the lease on {self._store.uri} was taken over by {who}: this driver did not renew it in time",
            hint="Nothing is lost: the other run carries out the same plan. Was this machine suspended or cut off?",
        )

    def release(self) -> None:
        """Let others in at once. A lease that was lost, or a store that refuses, is left as it is."""
        self._done.set()
        self._thread.join()
        if self.lost.is_set():
            return
        try:
            self._store.compare_and_swap(LEASE_KEY, self.holder.encode(renewals=-1, released=True), self._etag)
        except StoreError:
            return  # it expires by itself


@contextmanager
def hold_lease(
    store: Store,
    run_id: str,
    *,
    time_to_live_s: float = TIME_TO_LIVE_S,
    on_wait: Callable[[Holder], None] | None = None,
) -> Iterator[Lease]:
    """Hold the output's lease for the length of a ``with`` block.

    Args:
        store: the output.
        run_id: who asks.
        time_to_live_s: how long after the last sign of life others may take over.
        on_wait: told once whom it is waiting for, when it must find out whether the holder lives.

    Raises:
        LeaseHeld: the holder lives; names it.
        StoreError: as the store reports.
    """
    holder = _this_process(run_id, time_to_live_s)
    lease = Lease(store, holder, _acquire(store, holder, on_wait))
    try:
        yield lease
    finally:
        lease.release()


def _this_process(run_id: str, time_to_live_s: float) -> Holder:
    return Holder(
        run_id=run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        since=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        time_to_live_s=time_to_live_s,
        renewals=0,
        token=uuid.uuid4().hex,
    )


def _acquire(store: Store, wanted: Holder, on_wait: Callable[[Holder], None] | None) -> str:
    """The etag of the lease once it is ours."""
    watched = _seen.pop(store.uri, None)  # the watch may have begun with the command
    while True:
        current = read_lease(store)
        if current is None:
            etag = _swap(store, wanted, None)
        else:
            held, held_etag = current
            if watched is None:
                watched = (held_etag, time.monotonic())
            elif watched[0] != held_etag and not held.released:
                raise _refused(store, held)
            expired = time.monotonic() - watched[1] >= held.time_to_live_s
            if not (held.is_over or expired):
                if held.host == wanted.host:
                    raise _refused(store, held)  # its process is there: no need to watch
                if on_wait is not None:
                    on_wait(held)
                    on_wait = None
                watched_s, until_s = time.monotonic() - watched[1], held.time_to_live_s
                tell("watching whether another driver lives", round(watched_s), until_s, "s", f"{held} holds the lease")
                time.sleep(min(WATCH_INTERVAL_S, held.time_to_live_s / 5))
                continue
            etag = _swap(store, wanted, held_etag)
        if etag is not None:
            return etag


def _swap(store: Store, wanted: Holder, etag: str | None) -> str | None:
    try:
        return store.compare_and_swap(LEASE_KEY, wanted.encode(), etag)
    except Conflict:
        return None  # somebody was quicker: look again


def read_lease(store: Store) -> tuple[Holder, str] | None:
    """Who holds (or held) the lease, and the etag; None if nobody ever did. Unreadable content counts as released."""
    try:
        content, etag = store.get_with_etag(LEASE_KEY)
    except ObjectGone:
        return None
    try:
        return Holder(**json.loads(content)), etag
    except (ValueError, TypeError):
        return Holder("unknown", "unknown", 0, 0.0, "unknown", 0.0, 0, "", released=True), etag


def refuse_if_held(store: Store) -> None:
    """Raises LeaseHeld where a living process of this machine holds the lease; what others hold has to be watched.

    That watch begins here, so that a command has done with it the sooner.
    """
    current = read_lease(store)
    if current is None or current[0].is_over:
        return
    held, etag = current
    if held.host == socket.gethostname():
        raise _refused(store, held)
    _seen[store.uri] = etag, time.monotonic()


def _refused(store: Store, held: Holder) -> LeaseHeld:
    return LeaseHeld(
        f"another driver holds the lease on {store.uri}: {held}",
        hint=f"Wait until it is done. A dead driver's lease ends {held.time_to_live_s:.0f} s after its last renewal.",
    )
