"""The commit: the one conditional create that makes a shard's rows exist. The first writer wins, a late twin loses.

The attempt id stands in the part's footer and nowhere else. So when a create is refused, the stored object tells
whether it was our own (the answer to the first try was lost on the way) or a twin's.

Some stores accept ``If-None-Match`` and ignore it; the probe at the start of a run finds out. There a single process,
the driver, commits: workers hand it the bytes, and it looks before it writes (:class:`DriverCommitter`).
"""

from __future__ import annotations

import threading
from typing import Literal

from infra.errors import ObjectGone, StoreError
from infra.store import Store
from tasks.output.layout import part_key
from tasks.records import Version

CommitOutcome = Literal["committed", "already_committed"]

_MAGIC = b"PAR1"


def commit_shard(store: Store, version: Version, shard_id: str, data: bytes, attempt_id: str) -> CommitOutcome:
    """Make a shard's rows exist, unless they do already.

    Args:
        store: the output.
        version, shard_id: name the object.
        data: the whole Parquet object, as ``tasks.output.encoding.encode_part`` made and checked it.
        attempt_id: stands in ``data`` once.

    Returns:
        "committed" if this attempt's object is the one that exists now, "already_committed" if a twin was first;
        then nothing was written.

    Raises:
        ValueError: when ``data`` is no whole part of this attempt. Nothing was written.
        StoreError: when the store refuses for any other reason; the shard may be tried again.
    """
    token = _checked_token(data, shard_id, attempt_id)
    created = store.put_if_absent(part_key(version, shard_id), data, token=token)
    return "committed" if created else "already_committed"


class DriverCommitter:
    """Commits from one process, one part at a time, for stores that ignore conditional creates.

    Looking and writing are two requests, so this is safe among the threads of one process only. A second driver is
    kept away by the lease as far as that reaches; should it come through, it replaces a part by one with the same items
    of the same plan, never by less.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def commit(self, version: Version, shard_id: str, data: bytes, attempt_id: str) -> CommitOutcome:
        """As :func:`commit_shard`.

        Raises:
            ValueError: when ``data`` is no whole part of this attempt. Nothing was written.
            StoreError: when the store refuses, or doesn't hold afterwards what was written.
        """
        _checked_token(data, shard_id, attempt_id)
        key = part_key(version, shard_id)
        with self._lock:
            if self._exists(key):
                return "already_committed"
            self._store.put(key, data)
            stored = self._store.info(key).size_bytes
        if stored != len(data):
            raise StoreError(
                f"{self._store.uri_of(key)} holds {stored} bytes after {len(data)} were written",
                hint="Another driver may be writing the same output: let only one run at a time.",
            )
        return "committed"

    def _exists(self, key: str) -> bool:
        try:
            self._store.info(key)
        except ObjectGone:
            return False
        return True


def _checked_token(data: bytes, shard_id: str, attempt_id: str) -> bytes:
    token = attempt_id.encode()
    if len(data) < 12 or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise ValueError(f"the part of shard {shard_id} is not a whole Parquet object ({len(data)} bytes)")
    if len(token) < 16 or data.count(token) != 1:
        raise ValueError(f"the attempt id {attempt_id!r} must be 16 characters or more and stand once in the part")
    return token
