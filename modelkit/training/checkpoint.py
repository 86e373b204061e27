"""Checkpoints: one safetensors file with everything a run needs to go on exactly, written atomically.

Tensors are named ``model.*``, ``ema.*`` and ``optimiser.<index>.<key>``; numbers sit in the header as JSON.
Randomness is not stored because every step seeds itself from (run seed, step, rank).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/last.safetensors``; a crash leaves the previous one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / NAME, folder / f"{NAME}.{os.getpid()}.part"
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, draft, metadata={"numbers": json.dumps(checkpoint.numbers)})
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(path)
    return path


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder, or None when there is none.

    Raises:
        CheckpointError: when the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            numbers = json.loads((opened.metadata() or {})["numbers"])
    except Exception as error:  # safetensors raises its own base type, json and KeyError theirs
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); delete it to start over") from error
    return Checkpoint(tensors, numbers)
