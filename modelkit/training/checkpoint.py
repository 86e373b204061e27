"""Checkpoints: one safetensors file with everything a run needs to go on exactly.

Tensors are named ``model.*``, ``ema.*`` and ``optimiser.<index>.<key>``; numbers sit in the header as JSON.
Randomness is not stored because every step seeds itself from (run seed, step, rank).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor


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
    """Where the last checkpoint of a run is kept."""

    def load(self) -> Checkpoint | None:
        """The last one saved, or None; raises CheckpointError when it is damaged."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the last one, whole or not at all."""
        ...


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
