"""The record of trained weights, ``NAME.json`` beside ``NAME.safetensors``, and where both lie; reads without torch.

The record says what the tensors are (architecture and config), how images must be prepared, what the class ids mean,
where the weights come from and what they are worth. It is bound to the tensor file by the file's SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.errors import WeightsError

FORMAT, FIRST_FORMAT = "visionmill.weights.v2", "visionmill.weights.v1"
TENSORS, RECORD = ".safetensors", ".json"
_ON_DISK = {"kind": "task"}  # fields that the file calls otherwise


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
        keypoints: what the points are that the model finds on objects; None: it finds none. Not written where None, so
            that older records stay as they are.
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
    keypoints: KeypointSet | None = None
    created: str = ""
    record_counts: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the format's name first."""
        content = json.loads(json.dumps(asdict(self)))
        if content["keypoints"] is None:
            del content["keypoints"]
        said = {"format": FORMAT if content.pop("record_counts") else FIRST_FORMAT}
        return said | {_ON_DISK.get(name, name): value for name, value in content.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "record") -> Weights:
        """The record again; raises WeightsError naming what is missing, unknown or of another format."""
        if value.get("format") not in (FORMAT, FIRST_FORMAT):
            raise WeightsError(f"{where}: format must be {FORMAT!r} or {FIRST_FORMAT!r}, got {value.get('format')!r}")
        known = {_ON_DISK.get(each.name, each.name) for each in fields(cls)} - {"record_counts"}
        optional = {"lineage", "metrics", "licence", "tolerates", "keypoints", "created"}
        given = set(value) - {"format"}
        if given - known or known - optional - given:
            raise WeightsError(f"{where}: missing {sorted(known - optional - given)}, unknown {sorted(given - known)}")
        names = {key: name for name, key in _ON_DISK.items()}
        content = {names.get(key, key): value[key] for key in given}
        try:
            content["classes"] = tuple(ClassInfo(**each) for each in value["classes"])
            content["tolerates"] = Tolerates(**value.get("tolerates", {}))
            if value.get("keypoints") is not None:
                content["keypoints"] = KeypointSet.from_json(value["keypoints"])
            return cls(**content, record_counts=value["format"] == FORMAT)
        except (TypeError, KeyError, ValueError) as error:
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
        points = {} if self.keypoints is None else {"keypoints": list(self.keypoints.names)}
        return {"architecture": self.architecture, "config": self.config, "classes": classes, **points}

    def class_names(self) -> dict[int, str]:
        """Name by class id."""
        return {each.id: each.name for each in self.classes}


def write_record(path: Path, record: Weights) -> None:
    """Write or replace a record, whole or not at all."""
    write_whole(path, (json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode())


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
