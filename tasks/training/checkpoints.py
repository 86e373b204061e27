"""Checkpoints in a store: one object, overwritten whole, so that a killed run goes on wherever it is started again."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import ObjectGone
from infra.store import Store
from modelkit.training.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint


@dataclass(frozen=True, slots=True)
class StoreCheckpoints:
    """The last checkpoint of a run under one key; see ``modelkit.training.checkpoint.Checkpoints``."""

    store: Store
    key: str

    def load(self) -> Checkpoint | None:
        """The last one saved, or None.

        Raises:
            CheckpointError: when it is damaged.
            StoreError: when the store refuses.
        """
        try:
            return decode_checkpoint(self.store.get(self.key), str(self))
        except ObjectGone:
            return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace it; readers see the old one or the new one."""
        self.store.put(self.key, encode_checkpoint(checkpoint))

    def __str__(self) -> str:
        return self.store.uri_of(self.key)
