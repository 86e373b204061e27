"""Trained weights and their record: ``NAME.safetensors`` beside ``NAME.json``; never a pickle.

The record says what the tensors are (architecture and config), how images must be prepared, what the class ids mean,
where the weights come from and what they are worth. It is bound to the tensor file by the file's SHA-256.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.errors import WeightsError
from modelkit.registry import create_model, find_model

FORMAT, FIRST_FORMAT = "visionmill.weights.v2", "visionmill.weights.v1"
TENSORS, RECORD = ".safetensors", ".json"
_ON_DISK = {"kind": "task"}  # fields that the file calls otherwise
_MAX_NAMES_IN_MESSAGE = 8
# Running statistics span more decades than float16 has; they are small, so they stay as they are.
_NEVER_HALVED = re.compile(r"\.running_(mean|var)$")


@dataclass(frozen=True, slots=True)
class Tolerates:
    """Which faster ways of computing leave the metric as it is; measured, not hoped."""

    channels_last: bool = True
    bf16: bool = False
    compile: bool = True


@dataclass(frozen=True, slots=True)
class Weights:
    """The record of a trained state.

    Args:
        name: of these weights.
        architecture: registered model name.
        config: of the model, completed; ``create_model(architecture, **config)``.
        kind: what the model does, "instance", "semantic", ...; on disk under "task", its name since the first record.
        classes: what the label ids mean; ids not listed are never reported by name.
        preprocessing: resize rule, padding, mean, std, value range and channel order; what the model's transform does.
        digest: SHA-256 of the tensor file, hex.
        num_parameters: trainable and frozen, buffers not counted.
        lineage: where the weights come from: recipe, data, teacher, round, seed, file.
        metrics: by data set or split, then by metric.
        licence: of the weights.
        tolerates: faster ways of computing that keep the metric.
        created: ISO time, UTC.
        record_counts: whether config and classes are part of ``rows_digest``. Not in records of the first format, and
            not for random weights: outputs that were made with them keep their versions.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    kind: str
    classes: tuple[ClassInfo, ...]
    preprocessing: dict[str, Any]
    digest: str
    num_parameters: int
    lineage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    tolerates: Tolerates = Tolerates()
    created: str = ""
    record_counts: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the format's name first."""
        content = json.loads(json.dumps(asdict(self)))
        said = {"format": FORMAT if content.pop("record_counts") else FIRST_FORMAT}
        return said | {_ON_DISK.get(name, name): value for name, value in content.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "record") -> Weights:
        """The record again; raises WeightsError naming what is missing, unknown or of another format."""
        if value.get("format") not in (FORMAT, FIRST_FORMAT):
            raise WeightsError(f"{where}: format must be {FORMAT!r} or {FIRST_FORMAT!r}, got {value.get('format')!r}")
        known = {_ON_DISK.get(each.name, each.name) for each in fields(cls)} - {"record_counts"}
        optional = {"lineage", "metrics", "licence", "tolerates", "created"}
        given = set(value) - {"format"}
        if given - known or known - optional - given:
            raise WeightsError(f"{where}: missing {sorted(known - optional - given)}, unknown {sorted(given - known)}")
        names = {key: name for name, key in _ON_DISK.items()}
        content = {names.get(key, key): value[key] for key in given}
        try:
            content["classes"] = tuple(ClassInfo(**each) for each in value["classes"])
            content["tolerates"] = Tolerates(**value.get("tolerates", {}))
            return cls(**content, record_counts=value["format"] == FORMAT)
        except TypeError as error:
            raise WeightsError(f"{where}: {error}") from error

    @property
    def reference(self) -> str:
        """``name@digest`` with twelve digits: what rows and reports call it."""
        return f"{self.name}@{self.digest[:12]}"

    @property
    def rows_digest(self) -> str:
        """SHA-256, hex, of all that rows depend on: tensors, config and classes. Versions of outputs are named by it.

        For records that do not count it is that of the tensors alone, unless somebody changed a shipped one.
        """
        shipped = [each for each in shipped_records() if each.digest == self.digest]
        changed = any(each.row_settings() != self.row_settings() for each in shipped)
        if not self.record_counts and not changed:
            return self.digest
        content = {"tensors": self.digest, **self.row_settings()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def row_settings(self) -> dict[str, Any]:
        """What of the record changes rows, as plain JSON."""
        classes = [asdict(each) for each in self.classes]
        return {"architecture": self.architecture, "config": self.config, "classes": classes}

    def class_names(self) -> dict[int, str]:
        """Name by class id."""
        return {each.id: each.name for each in self.classes}


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
    tolerates: Tolerates = Tolerates(),
    stored: Literal["float32", "float16"] = "float32",
) -> Weights:
    """Write ``destination/NAME.safetensors`` and its record, each whole or not at all.

    Args:
        model: from ``create_model``.
        destination: folder; made if absent.
        name: file-name friendly: letters, digits, ``. _ -``.
        classes, lineage, metrics, licence, tolerates: of the record.
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


def write_record(path: Path, record: Weights) -> None:
    """Write or replace a record, whole or not at all."""
    write_whole(path, (json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode())


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


def read_record(path: Path) -> Weights:
    """The record in a JSON file; raises WeightsError when it is absent or malformed."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"{path} is missing: weights need their record ({RECORD}) beside the tensors ({TENSORS}); "
            "'visionmill models import' writes both from a published checkpoint"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} is not a readable record: {error}") from error
    return Weights.from_json(value, str(path))


def find_files(location: Path) -> tuple[Path, Path]:
    """Tensor file and record of a folder, a tensor file or a record; raises WeightsError when it is not one pair."""
    if location.is_dir():
        found = sorted(location.glob(f"*{TENSORS}"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise WeightsError(f"{location} must hold one {TENSORS} file, found {names}")
        location = found[0]
    if location.suffix not in (TENSORS, RECORD):
        raise WeightsError(
            f"{location} is neither {TENSORS} nor a folder of it; import published checkpoints first: "
            "visionmill models import NAME FILE FOLDER"
        )
    tensors = location.with_suffix(TENSORS)
    if not tensors.exists():
        raise WeightsError(f"{tensors} is missing")
    return tensors, location.with_suffix(RECORD)


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
        record_counts=False,  # the digest is that of seed and config
    )
    return model, record


@functools.cache
def shipped_records() -> tuple[Weights, ...]:
    """Records of the weights that come with this package, by name."""
    return tuple(read_record(path) for path in sorted(shipped_folder().glob(f"*{RECORD}")))


def shipped_folder() -> Path:
    """Where they lie."""
    return Path(__file__).resolve().parent / "shipped"


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: readers see the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def with_metrics(record: Weights, metrics: Mapping[str, Any], tolerates: Tolerates | None = None) -> Weights:
    """The same weights with what was measured on them since."""
    return replace(record, metrics=dict(metrics), tolerates=tolerates or record.tolerates)
