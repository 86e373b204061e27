"""Trained weights: ``NAME.safetensors`` beside its record (:mod:`modelkit.records`); never a pickle."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.errors import WeightsError
from modelkit.records import (
    RECORD,
    TENSORS,
    Tolerates,
    Weights,
    find_files,
    read_record,
    write_record,
    write_whole,
)
from modelkit.registry import create_model, find_model

_MAX_NAMES_IN_MESSAGE = 8
_MEASURED_NOTHING = Tolerates()
# Running statistics span more decades than float16 has; they are small, so they stay as they are.
_NEVER_HALVED = re.compile(r"\.running_(mean|var)$")


def describe_preprocessing(model: VisionModel) -> dict[str, Any]:
    """What a model's transform does to an image, as the record keeps it."""
    return {**model.transform.to_config(), "value_range": [0.0, 1.0], "channels": "RGB", "resize": "bilinear"}


def save_weights(
    model: VisionModel,
    destination: Path | str,
    *,
    name: str,
    classes: Sequence[ClassInfo],
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    licence: str = "unknown",
    tolerates: Tolerates = _MEASURED_NOTHING,
    keypoints: KeypointSet | None = None,
    stored: Literal["float32", "float16"] = "float32",
) -> Weights:
    """Write ``destination/NAME.safetensors`` and its record, each whole or not at all.

    Args:
        model: from ``create_model``.
        destination: folder; made if absent.
        name: file-name friendly: letters, digits, ``. _ -``.
        classes, lineage, metrics, licence, tolerates, keypoints: of the record.
        stored: number format of the file; "float16" halves it (running statistics stay float32). Loading always
            gives float32, so what was measured must be measured on weights that were loaded back.

    Returns:
        The record.

    Raises:
        WeightsError: for an unusable name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise WeightsError(f"weights name {name!r} must be letters, digits, '.', '_' or '-'")
    content = serialise(model.state_dict(), stored)
    config = {key: value for key, value in model.config.items() if key != "name"}
    record = Weights(
        name=name,
        architecture=model.config["name"],
        config=config,
        kind=find_model(model.config["name"]).kind,
        classes=tuple(classes),
        preprocessing=describe_preprocessing(model),
        digest=hashlib.sha256(content).hexdigest(),
        num_parameters=num_parameters(model),
        keypoints=keypoints,
        lineage=dict(lineage or {}),
        metrics=dict(metrics or {}),
        licence=licence,
        tolerates=tolerates,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    folder = Path(destination)
    write_whole(folder / f"{name}{TENSORS}", content)
    write_record(folder / f"{name}{RECORD}", record)
    return record


def num_parameters(model: nn.Module) -> int:
    """Trainable and frozen parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def serialise(state: Mapping[str, Tensor], stored: Literal["float32", "float16"] = "float32") -> bytes:
    """A state dict as the bytes of a safetensors file; the same tensors always give the same bytes."""
    dtype = torch.float16 if stored == "float16" else torch.float32
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point() and not (stored == "float16" and _NEVER_HALVED.search(name)):
            tensor = tensor.to(dtype)
        tensors[name] = tensor.clone()
    return safetensors.torch.save(tensors)


def load_weights(location: Path) -> tuple[VisionModel, Weights]:
    """Model and record from a folder, a tensor file or a record. The digest, every name and every shape is checked.

    Raises:
        WeightsError: a damaged file, a record that belongs to another file, missing or surplus tensors.
    """
    tensors, record_path = find_files(location)
    record = read_record(record_path)
    content = tensors.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.digest:
        raise WeightsError(
            f"{tensors} has SHA-256 {digest[:12]}..., its record says {record.digest[:12]}...: "
            "the file is damaged or the record belongs to another one"
        )
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise WeightsError(f"{tensors} is not a safetensors file: {error}") from error
    model = create_model(record.architecture, **record.config)
    if describe_preprocessing(model) != record.preprocessing:
        raise WeightsError(f"{record_path}: preprocessing differs from the model's own transform")
    load_state(model, state, str(tensors))
    return model.eval(), record


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a state dict into a model, as the model's own number formats.

    Raises:
        WeightsError: names missing and surplus tensors and those of another shape; the model is then unchanged.
    """
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"{where} does not fit the model; tensors: {'; '.join(problems)}")
    model.load_state_dict({name: state[name].to(own[name].dtype) for name in own})


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_IN_MESSAGE])
    return shown if len(names) <= _MAX_NAMES_IN_MESSAGE else f"{shown}, ..."


def random_weights(name: str, seed: int, config: Mapping[str, Any] | None = None) -> tuple[VisionModel, Weights]:
    """A model with untrained weights that only the seed decides, and a record that says so; for benchmarks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, **(config or {})).eval()
    # There is no file to hash, and the last bits of normal draws differ between processors; so their cause is hashed.
    identity = json.dumps({"random": seed, "config": model.config}, sort_keys=True)
    record = Weights(
        name=f"{name}-random-{seed}",
        architecture=name,
        config={key: value for key, value in model.config.items() if key != "name"},
        kind=find_model(name).kind,
        classes=model.anonymous_classes(),
        preprocessing=describe_preprocessing(model),
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        num_parameters=num_parameters(model),
        lineage={"kind": "random", "seed": seed, "trained": False},
        licence="none: untrained",
        tolerates=Tolerates(channels_last=True, bf16=True, compile=True),
        keypoints=model.anonymous_keypoints(),
        record_counts=False,  # the digest is that of seed and config
    )
    return model, record
