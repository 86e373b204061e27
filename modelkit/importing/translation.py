"""From a published checkpoint to weights of ours: translate, check every tensor, write with a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelkit.carriers.classes import ClassInfo
from modelkit.importing.checkpoints import file_digest, read_checkpoint
from modelkit.importing.key_table import KeyTable
from modelkit.importing.tables import TABLES
from modelkit.published import published_by_digest
from modelkit.registry import create_model, find_model, merge_options
from modelkit.weights import Tolerates, Weights, load_state, save_weights


def import_weights(
    name: str,
    file: Path | str,
    destination: Path | str,
    *,
    config: Mapping[str, Any] | None = None,
    weights_name: str | None = None,
    classes: tuple[ClassInfo, ...] | None = None,
) -> Weights:
    """Translate a published checkpoint into ``destination/<weights_name>.safetensors`` and its record.

    Args:
        name: registered model the checkpoint belongs to.
        file: ``.pth``/``.pt`` (a state dict, or one under the names that trainers use) or ``.safetensors``.
        destination: folder.
        config: options of the model; what is left out comes from the published entry (when the file's SHA-256 is
            known), then from the tensors, then from the model's defaults.
        weights_name: default: ``<name>-<weights>`` for known files, else ``<name>-<first 8 of the file's SHA-256>``.
        classes: meaning of the label ids, where the file is not a known one.

    Returns:
        The record that was written.

    Raises:
        UnknownNameError: no such model.
        WeightsError: an unreadable file; missing, surplus or misshapen tensors, by name.
    """
    find_model(name)  # an unknown name is told before the file is read
    path, table = Path(file), TABLES.get(name, KeyTable())
    digest = file_digest(path)
    known = published_by_digest(name, digest)
    state = read_checkpoint(path, table)
    options: dict[str, Any] = {}
    for said in (table.infer(state), known.config if known else {}, config or {}):
        options = merge_options(options, said)
    model = create_model(name, **options)
    load_state(model, table.rename(state), str(path))
    lineage: dict[str, Any] = {"kind": "imported", "file": path.name, "file_sha256": digest}
    return save_weights(
        model,
        destination,
        name=weights_name or f"{name}-{known.weights if known else digest[:8]}",
        classes=classes or (known.classes if known else model.anonymous_classes()),
        lineage={**lineage, **known.lineage} if known else lineage,
        metrics=known.metrics if known else {},
        licence=known.licence if known else "unknown",
        tolerates=Tolerates(),
    )
