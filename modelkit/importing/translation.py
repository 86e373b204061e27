"""From a published checkpoint to weights of ours: translate, check every tensor, write with a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.importing.checkpoints import file_digest, read_checkpoint
from modelkit.importing.classes import read_classes
from modelkit.importing.key_table import KeyTable, State
from modelkit.importing.tables import TABLES
from modelkit.published import Published, published_by_digest
from modelkit.records import Tolerates, Weights
from modelkit.registry import create_model, find_model, merge_options
from modelkit.weights import load_state, save_weights


def import_weights(
    name: str,
    file: Path | str,
    destination: Path | str,
    *,
    config: Mapping[str, Any] | None = None,
    weights_name: str | None = None,
    classes: Sequence[ClassInfo] | str | Path | None = None,
    parts: Mapping[str, Path | str] | None = None,
) -> Weights:
    """Translate a published checkpoint into ``destination/<weights_name>.safetensors`` and its record.

    Args:
        name: registered model the checkpoint belongs to.
        file: ``.pth``/``.pt`` (a state dict, or one under the names that trainers use) or ``.safetensors``.
        destination: folder.
        config: options of the model; what is left out comes from the published entry (when the file's SHA-256 is
            known), then from the tensors, then from what the system that wrote the file does to images, then from the
            model's defaults.
        weights_name: default: ``<name>-<weights>`` for known files, else ``<name>-<first 8 of the file's SHA-256>``.
        classes: meaning of the label ids, or where it is written down (``read_classes``); default: as published for
            known files, else what the system's checkpoints always find, else numbers.
        parts: further files by the name of the module that they fill, such as ``{"flow.network": "raft_small.pth"}``.

    Returns:
        The record that was written.

    Raises:
        UnknownNameError: no such model.
        WeightsError: an unreadable file; missing, surplus or misshapen tensors, by name; classes that do not fit.
    """
    find_model(name)  # an unknown name is told before the file is read
    path, table = Path(file), TABLES.get(name, KeyTable())
    digest = file_digest(path)
    known = published_by_digest(name, digest)
    state = read_checkpoint(path, table)
    options: dict[str, Any] = {}
    for said in (table.config, table.infer(state), known.config if known else {}, config or {}):
        options = merge_options(options, said)
    model = create_model(name, **options)
    tensors, sources = _with_parts(table.rename(state), parts or {})
    load_state(model, tensors, str(path))
    lineage: dict[str, Any] = {"kind": "imported", "file": path.name, "file_sha256": digest, **sources}
    return save_weights(
        model,
        destination,
        name=weights_name or f"{name}-{known.weights if known else digest[:8]}",
        classes=_classes(classes, known, model, table),
        lineage={**lineage, **known.lineage} if known else lineage,
        metrics=known.metrics if known else {},
        licence=known.licence if known else "unknown",
        tolerates=Tolerates(),
        keypoints=_keypoints(model, table),
    )


def _with_parts(state: State, parts: Mapping[str, Path | str]) -> tuple[State, dict[str, Any]]:
    """The state with the tensors of further files below the names of their modules, and where these come from."""
    tensors, sources = dict(state), {}
    for module, file in parts.items():
        tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{module}.")}
        tensors |= {f"{module}.{name}": value for name, value in read_checkpoint(Path(file)).items()}
        sources[module] = {"file": Path(file).name, "file_sha256": file_digest(Path(file))}
    return tensors, {"parts": sources} if sources else {}


def _classes(
    given: Sequence[ClassInfo] | str | Path | None, known: Published | None, model: VisionModel, table: KeyTable
) -> tuple[ClassInfo, ...]:
    if isinstance(given, str | Path):
        return read_classes(given, model.anonymous_classes())
    if given is not None:
        return tuple(given)
    if known:
        return known.classes
    numbered = model.anonymous_classes()
    return table.classes if len(table.classes) == len(numbered) else numbered


def _keypoints(model: VisionModel, table: KeyTable) -> KeypointSet | None:
    numbered = model.anonymous_keypoints()
    named = table.keypoints
    return named if named is not None and numbered is not None and len(named) == len(numbered) else numbered
