"""A store whose callers are seen to wait for it: a thread in a request is slow, but it does not hang."""

from __future__ import annotations

from typing import Any

from infra.store import Store
from tasks.engine.heartbeat import HeartbeatWriter


class WatchedStore:
    """A :class:`infra.store.Store` in all it does; each call is marked in the heartbeat while it lasts."""

    def __init__(self, store: Store, beats: HeartbeatWriter) -> None:
        self._store, self._beats = store, beats

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            with self._beats.in_store():
                return found(*arguments, **named)

        return call
