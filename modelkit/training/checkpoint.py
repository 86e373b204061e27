"""Checkpoints: one safetensors file with everything a run needs to go on exactly, written atomically.

Tensors are named ``model.*``, ``ema.*`` and ``optimiser.<index>.<key>``; numbers sit in the header as JSON.
Randomness is not stored because every step seeds itself from (run seed, step, rank).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

NAME = "last.safetensors"


class CheckpointError(ValueError):
    """A checkpoint file cannot be used: damaged, or of another recipe."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training state.

    Args:
        tensors: by prefixed name.
        numbers: plain JSON: step, EMA updates, recipe fingerprint, history.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}


class Checkpoints(Protocol):
    """Where the last checkpoint of a run is kept: a folder, an object store."""

    def load(self) -> Checkpoint | None:
        """The last one saved, or None; raises CheckpointError when it is damaged."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the last one, whole or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class FolderCheckpoints:
    """Checkpoints in a local folder."""

    folder: Path

    def load(self) -> Checkpoint | None:
        """See :class:`Checkpoints`."""
        return load_checkpoint(self.folder)

    def save(self, checkpoint: Checkpoint) -> None:
        """See :class:`Checkpoints`."""
        save_checkpoint(self.folder, checkpoint)

    def __str__(self) -> str:
        return str(self.folder)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of one safetensors file; equal checkpoints give equal bytes."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
    return safetensors.torch.save(tensors, metadata={"numbers": json.dumps(checkpoint.numbers)})


def decode_checkpoint(content: bytes, where: str) -> Checkpoint:
    """The checkpoint again.

    Raises:
        CheckpointError: when the bytes are damaged; names ``where``.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        numbers = json.loads(header["__metadata__"]["numbers"])
    except Exception as error:  # safetensors raises its own base type, json and KeyError theirs
        raise CheckpointError(f"checkpoint {where} is damaged ({error}); delete it to start over") from error
    return Checkpoint(tensors, numbers)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/last.safetensors``; a crash leaves the previous one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / NAME, folder / f"{NAME}.{os.getpid()}.part"
    with draft.open("wb") as file:
        file.write(encode_checkpoint(checkpoint))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder, or None when there is none.

    Raises:
        CheckpointError: when the file is damaged.
    """
    path = folder / NAME
    return decode_checkpoint(path.read_bytes(), str(path)) if path.exists() else None
