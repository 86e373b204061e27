"""Clips and models with a memory: frames in order, one state per clip, handed on from shard to shard.

Inside a worker the pieces of a clip that lie in one shard are one run: one thread decodes them one after another, so
its frames arrive at the model in order, and each run has a state of its own, so two clips never mix.

Between shards the state travels through the output. An attempt writes its state before it commits, under its own
attempt id; the committed part names the attempt that won (in its footer). So the one conditional create of the part
also decides which state counts, and rows and state are always of one attempt, also where two attempts differ in the
last digits. A state is removed when the shard that needs it is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.errors import ObjectGone, StoreError, StoreUnavailable
from infra.store import Store
from tasks.media.decoding import DecodeOptions, EntryReader, Frame, decode_entry
from tasks.output.encoding import PartFacts
from tasks.output.layout import part_key, state_key, states_prefix
from tasks.output.store_files import open_parquet
from tasks.records import Entry, Shard, Version

if TYPE_CHECKING:  # a driver, which only removes states, starts without torch
    from modelkit.video import VideoState


class Clip:
    """A run of frames of one clip: what the frames so far have left. Only the thread that holds the model uses it."""

    def __init__(self, state: VideoState) -> None:
        self.state = state

    def step(self, predictor: Any, prepared: Any) -> Any:
        """The raw result of the next frame. When it raises, the state is as if the frame had not been there."""
        raw, self.state = predictor.step(prepared, self.state)
        return raw


def runs_of(entries: Sequence[tuple[int, Entry]]) -> list[list[tuple[int, Entry]]]:
    """Entries in the order given, neighbouring pieces of one clip together; every image stands alone."""
    runs = [[entries[0]]] if entries else []
    for (_, before), (index, entry) in pairwise(entries):
        if _goes_on(before, entry):
            runs[-1].append((index, entry))
        else:
            runs.append([(index, entry)])
    return runs


def _goes_on(before: Entry, after: Entry) -> bool:
    """Whether an entry is the piece of a clip that follows another one without a gap."""
    same = before.media == after.media == "video" and (before.uri, before.etag) == (after.uri, after.etag)
    return same and before.end_frame is not None and before.end_frame == after.first_frame


def is_continued(shard: Shard) -> bool:
    """Whether the last clip of a shard goes on behind it: a plan leaves the end of a clip's last piece open."""
    last = shard.entries[-1]
    return last.media == "video" and last.end_frame is not None


class Handover:
    """States of clips that are cut between two shards, below an output.

    Args:
        store: the output.
        version: of the rows.
    """

    def __init__(self, store: Store, version: Version) -> None:
        self._store, self._version = store, version

    def leave(self, shard_id: str, attempt_id: str, state: VideoState) -> None:
        """Write what the last clip of a shard leaves; to be called before the attempt commits."""
        self._store.put(state_key(self._version, shard_id, attempt_id), state.to_bytes())

    def take(self, shard_id: str) -> VideoState | None:
        """What the attempt left whose rows of the shard are committed; None if that is not at hand (any more).

        Raises:
            StoreError: as the store reports.
            StateError: the object is damaged.
        """
        from modelkit.video import VideoState  # torch: seconds that a driver without clips need not wait

        try:
            with open_parquet(self._store, part_key(self._version, shard_id)) as part:
                facts = PartFacts.from_metadata(part.metadata.metadata or {})
            return VideoState.from_bytes(self._store.get(state_key(self._version, shard_id, facts.attempt_id)))
        except ObjectGone:
            return None
        except (pa.ArrowInvalid, ValueError) as error:
            raise StoreError(
                f"shard {shard_id} left nothing to go on with: {error}",
                hint="`visionmill verify OUTPUT` names what is damaged; what is removed is computed again.",
            ) from error

    def forget(self, shard_id: str | None = None) -> None:
        """Remove the states of all attempts at a shard (None: at any): nobody needs them. Never fails."""
        with suppress(StoreError):
            for info in list(self._store.list(states_prefix(self._version, shard_id))):
                self._store.delete(info.key)


def frames_before(entry: Entry, reader: EntryReader, decode: DecodeOptions) -> Iterator[Frame]:
    """The frames of a clip before those of ``entry``, as far as they can be decoded.

    Raises:
        StoreError: they cannot be read now.
    """
    before = replace(entry, first_frame=0, first_pts=None, end_frame=entry.first_frame)
    for frame in decode_entry(before, reader, decode):
        if frame.failure is not None and frame.failure.stage == "fetch":  # not what was seen the first time
            raise StoreUnavailable(frame.failure.error)
        if frame.image_rgb_hwc_u8 is not None:
            yield frame
