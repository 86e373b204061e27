"""Reads foreign checkpoints: the only place that opens a pickle, and with ``weights_only=True``, which runs no code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modelkit.errors import WeightsError
from modelkit.importing.key_table import KeyTable, State

# What trainers wrap around a state dict.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")
# Trainers also store their best score beside the tensors, as numpy computed it: plain numbers, whose classes
# ``weights_only`` must be told of. numpy 1 named the module differently.
_NUMBERS: list[Any] = [
    (np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")
]
_NUMBERS += [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex; raises WeightsError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def read_checkpoint(path: Path, table: KeyTable | None = None) -> State:
    """A flat dict of tensors by foreign names, without the wrappers that trainers put around it.

    Args:
        path: ``.safetensors``, or anything that ``torch.save`` wrote.
        table: what it drops need not be a tensor.

    Raises:
        WeightsError: when the file holds anything but plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not a checkpoint of plain tensors: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {type(content).__name__}, not a state dict")
    named = {str(key).removeprefix("module."): value for key, value in content.items()}
    table = table or KeyTable()
    wrong = [name for name, value in named.items() if not isinstance(value, Tensor) and not table.drops(name)]
    if wrong:
        raise WeightsError(f"{path} is not a state dict: {wrong[0]!r} is no tensor")
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}
