"""Names, paths and weights to a ready predictor: the one place that knows every way to say which model is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelkit.base import VisionModel
from modelkit.errors import ConfigError, UnknownNameError, WeightsError
from modelkit.importing import import_weights
from modelkit.predictor import Predictor
from modelkit.published import EMBEDDED_MODEL, cache_folder, fetch, find_published
from modelkit.registry import create_model, find_model, find_source, model_names
from modelkit.video import VideoModel
from modelkit.weights import (
    RECORD,
    TENSORS,
    Weights,
    find_files,
    load_weights,
    random_weights,
    read_record,
    shipped_folder,
    shipped_records,
)

_RANDOM = re.compile(r"random:(\d+)")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    min_score: float = 0.0,
) -> Predictor:
    """A predictor for a model given by name or by files.

    Args:
        name_or_path: one of: a shipped name ("digitscape_mask_rcnn"); a folder, ``.safetensors`` file or record; a
            registered model, optionally with weights after a colon ("maskrcnn_resnet50_fpn:COCO_V1",
            "lraspp_mobilenet_v3_large:random:0"); "hf:LOCATION", a transformers model in a folder or on the hub.
        device: where the model runs.
        weights: for a registered model: published name, "random:SEED", or files. Default: its first published ones.
        config: options for "random:SEED" weights only; all others carry theirs.
        min_score: results below it are dropped.

    Raises:
        UnknownNameError: neither a known name nor an existing path.
        WeightsError: files that do not fit or are damaged.
        WeightsUnavailableError: published weights that cannot be downloaded here.
        ConfigError: a config where none is taken.
    """
    model, record = _resolve(str(name_or_path), None if weights is None else str(weights), config)
    return Predictor(model, record, device, min_score=min_score)


def describe(name_or_path: str | Path, *, weights: str | Path | None = None) -> Weights:
    """The record of what ``load`` would load; reads only the record where one lies ready."""
    location = _files(str(name_or_path)) if weights is None else None
    if location is not None:
        return read_record(find_files(location)[1])
    return _resolve(str(name_or_path), None if weights is None else str(weights), None)[1]


def is_video_model(record: Weights) -> bool:
    """Whether the model of a record carries a state from frame to frame; nothing is allocated (meta device)."""
    with torch.device("meta"):
        return isinstance(create_model(record.architecture, **record.config), VideoModel)


def _files(name_or_path: str) -> Path | None:
    """Where weights of that name or path lie, if they lie in files."""
    if any(record.name == name_or_path for record in shipped_records()):
        return shipped_folder() / f"{name_or_path}{TENSORS}"
    path = Path(name_or_path)
    return path if path.exists() or path.suffix in (TENSORS, RECORD) else None


def _resolve(name: str, weights: str | None, config: Mapping[str, Any] | None) -> tuple[VisionModel, Weights]:
    source = find_source(name)
    if source is not None:
        _refuse_weights(weights, name)
        _refuse_config(config, name)
        return source(name)
    location = _files(name)
    if location is None and weights is None and ":" in name:
        name, weights = name.split(":", 1)
    if location is not None:
        _refuse_weights(weights, name)
        _refuse_config(config, name)
        return load_weights(location)
    _check_known(name)
    weights = weights or _default_weights(name)
    seed = _RANDOM.fullmatch(weights)
    if seed:
        return random_weights(name, int(seed[1]), config)
    _refuse_config(config, f"{name}:{weights}")
    return _of_registered(name, weights)


def _of_registered(name: str, weights: str) -> tuple[VisionModel, Weights]:
    location = _files(weights)
    if location is None:
        entry = find_published(name, weights)
        location = cache_folder() / f"{name}-{weights}{TENSORS}"
        if not location.exists():
            import_weights(name, fetch(entry), cache_folder(), weights_name=f"{name}-{weights}")
    model, record = load_weights(location)
    if record.architecture != name:
        raise WeightsError(f"{location} holds weights of {record.architecture!r}, not of {name!r}")
    return model, record


def _check_known(name: str) -> None:
    if name in model_names():
        return
    shipped = [record.name for record in shipped_records()]
    close = difflib.get_close_matches(name, [*shipped, *model_names()])
    known = f"shipped with weights: {', '.join(shipped)}; known models: {', '.join(model_names())}"
    raise UnknownNameError(
        f"{name!r} is neither a known model nor an existing file or folder; "
        + (f"did you mean {' or '.join(close)}?" if close else known)
    )


def _default_weights(name: str) -> str:
    published = find_model(name).weights
    if not published:
        raise WeightsError(
            f"model {name!r} has no published weights; give a weights file, or random:SEED for untrained ones, "
            f"or use the embedded model {EMBEDDED_MODEL!r}"
        )
    return published[0]


def _refuse_weights(weights: str | None, where: str) -> None:
    if weights is not None:
        raise ConfigError(f"{where} brings its own weights; leave out weights={weights!r}")


def _refuse_config(config: Mapping[str, Any] | None, where: str) -> None:
    if config:
        raise ConfigError(f"{where} carries its own config; options are taken for random:SEED weights only")
