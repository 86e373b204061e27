"""Published checkpoints of other systems become safetensors + record. The only place that opens a pickle, and only with
``weights_only=True``, which runs no code.

How tensor names translate is data: one ``KeyTable`` per system. A rule is a regular expression for a foreign name and
what to write instead; the first that matches counts, names that match none stay as they are.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modelkit.errors import WeightsError
from modelkit.published import Published, published_by_digest
from modelkit.registry import create_model, find_model
from modelkit.weights import ClassInfo, Tolerates, Weights, load_state, save_weights

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class KeyTable:
    """How one system's checkpoints translate.

    Args:
        rules: (regular expression, replacement) pairs.
        drop: regular expressions of tensors that our models do not keep.
        infer: what the tensors say about the config (number of classes, kind of normalisation).
    """

    rules: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    infer: Callable[[State], dict[str, Any]] = lambda state: {}

    def rename(self, state: Mapping[str, Tensor]) -> State:
        """The tensors under our names; raises WeightsError when two get the same one."""
        renamed: State = {}
        for name, tensor in state.items():
            if any(re.search(pattern, name) for pattern in self.drop):
                continue
            target = self._target(name)
            if target in renamed:
                raise WeightsError(f"two tensors of the checkpoint translate to {target!r}, the second is {name!r}")
            renamed[target] = tensor
        return renamed

    def _target(self, name: str) -> str:
        for pattern, replacement in self.rules:
            target, count = re.subn(pattern, replacement, name, count=1)
            if count:
                return target
        return name


def _infer_rcnn(state: State) -> dict[str, Any]:
    config: dict[str, Any] = {}
    scores = state.get("roi_heads.box_predictor.cls_score.bias", state.get("roi_heads.box.predictor.cls_score.bias"))
    if scores is not None:
        config["num_classes"] = len(scores)
    return config


def _infer_resnet_rcnn(state: State) -> dict[str, Any]:
    # A trained batch norm counts its batches; one that was frozen from the start keeps no count.
    frozen = not any(name.endswith("num_batches_tracked") for name in state)
    return {**_infer_rcnn(state), **({"backbone": {"norm": "frozen_batch"}} if frozen else {})}


def _infer_semantic(state: State) -> dict[str, Any]:
    heads = [name for name in state if re.search(r"(^|\.)classifier\.(4|low_classifier)\.bias$", name)]
    config: dict[str, Any] = {"num_classes": len(state[heads[0]])} if heads else {}
    return config


def _infer_semantic_aux(state: State) -> dict[str, Any]:
    return {**_infer_semantic(state), "aux_loss": any("aux_classifier." in name for name in state)}


# The first two groups are names from before torchvision 0.13, which its published COCO files still have.
_RCNN_RULES = (
    *((rf"^roi_heads\.mask_head\.mask_fcn{k + 1}\.", f"roi_heads.mask.body.{k}.0.") for k in range(4)),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.pyramid.\1_blocks.\2.0.\3"),
    (r"^backbone\.fpn\.", "neck.pyramid."),
    (r"^roi_heads\.(box|mask)_head\.", r"roi_heads.\1.body."),
    (r"^roi_heads\.(box|mask)_predictor\.", r"roi_heads.\1.predictor."),
)
_SEMANTIC_RULES = ((r"^(backbone|classifier|aux_classifier)\.", r"network.\1."),)

TORCHVISION_RCNN = KeyTable(_RCNN_RULES, infer=_infer_rcnn)
TORCHVISION_RESNET_RCNN = KeyTable(_RCNN_RULES, infer=_infer_resnet_rcnn)
TORCHVISION_SEMANTIC = KeyTable(_SEMANTIC_RULES, infer=_infer_semantic)
TORCHVISION_SEMANTIC_AUX = KeyTable(_SEMANTIC_RULES, infer=_infer_semantic_aux)

TABLES: dict[str, KeyTable] = {
    "mask_rcnn": TORCHVISION_RCNN,
    "faster_rcnn": TORCHVISION_RCNN,
    "maskrcnn_resnet50_fpn": TORCHVISION_RESNET_RCNN,
    "fasterrcnn_resnet50_fpn": TORCHVISION_RESNET_RCNN,
    "maskrcnn_resnet50_fpn_v2": TORCHVISION_RCNN,
    "fasterrcnn_resnet50_fpn_v2": TORCHVISION_RCNN,
    "lraspp_mobilenet_v3_large": TORCHVISION_SEMANTIC,
    "deeplabv3_mobilenet_v3_large": TORCHVISION_SEMANTIC_AUX,
    "deeplabv3_resnet50": TORCHVISION_SEMANTIC_AUX,
    "deeplabv3_resnet101": TORCHVISION_SEMANTIC_AUX,
    "fcn_resnet50": TORCHVISION_SEMANTIC_AUX,
    "fcn_resnet101": TORCHVISION_SEMANTIC_AUX,
}


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
        file: ``.pth``/``.pt`` (a state dict, or one under "model" or "state_dict") or ``.safetensors``.
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
    find_model(name)
    path = Path(file)
    digest = _digest(path)
    known = published_by_digest(name, digest)
    state = _read_checkpoint(path)
    table = TABLES.get(name, KeyTable())
    options = {**table.infer(state), **(dict(known.config) if known else {}), **(config or {})}
    model = create_model(name, **options)
    load_state(model, table.rename(state), str(path))
    lineage: dict[str, Any] = {"kind": "imported", "file": path.name, "file_sha256": digest}
    return save_weights(
        model,
        destination,
        name=weights_name or f"{name}-{known.weights if known else digest[:8]}",
        classes=classes or _classes(known, int(model.config.get("num_classes", 1))),
        lineage={**lineage, **known.lineage} if known else lineage,
        metrics=known.metrics if known else {},
        licence=known.licence if known else "unknown",
        tolerates=Tolerates(),
    )


def _classes(known: Published | None, num_classes: int) -> tuple[ClassInfo, ...]:
    if known:
        return known.classes
    return tuple(ClassInfo(label, f"class {label}") for label in range(1, num_classes))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def _read_checkpoint(path: Path) -> State:
    """A flat dict of tensors, without the wrappers that trainers put around it."""
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not a checkpoint of plain tensors: {reason}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {type(content).__name__}, not a state dict")
    wrong = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise WeightsError(f"{path} is not a state dict: {wrong[0]!r} is no tensor")
    return {str(key).removeprefix("module."): value for key, value in content.items()}
