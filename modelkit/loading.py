"""Names, paths and weights to a ready predictor: the one place that knows every way to say which model is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelkit.base import VisionModel
from modelkit.catalogue import check_known, files_of, refuse_weights, translated
from modelkit.downloads import fetch
from modelkit.errors import ConfigError, WeightsError
from modelkit.importing import import_weights
from modelkit.predictor import Predictor
from modelkit.published import find_published
from modelkit.records import Weights, shipped_records
from modelkit.registry import create_model, find_model, find_source
from modelkit.tiling import TiledPredictor, Tiling
from modelkit.tiling.predictor import check_can_be_tiled
from modelkit.video import VideoModel
from modelkit.weights import load_weights, random_weights

_RANDOM = re.compile(r"random:(\d+)")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    min_score: float = 0.0,
    detections: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
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
        detections: objects that are found in an image (in each tile of it) at most; default: as the weights have it.
        tile: side, in source pixels, of the tiles that larger pictures are cut into; 0: none is cut; default: as the
            weights want it, most want none. overlap: of neighbouring tiles, see :func:`tiling_of`.

    Raises:
        UnknownNameError: neither a known name nor an existing path.
        WeightsError: files that do not fit or are damaged.
        WeightsUnavailableError: published weights that cannot be downloaded here.
        ConfigError: a config where none is taken, a limit or tiles for a model that can have none.
    """
    model, record = resolve(str(name_or_path), None if weights is None else str(weights), config)
    if detections is not None:
        model.limit_detections(detections)
    tiling = tiling_of(model, tile, overlap)
    predictor = Predictor(model, record, device, min_score=min_score)
    return predictor if tiling is None else TiledPredictor(predictor, tiling)


def tiling_of(model: VisionModel, tile: int | None, overlap: int | None) -> Tiling | None:
    """How a model is to look at large pictures; None: as at all others.

    Args:
        tile, overlap: as ``load`` takes them; without an overlap it is an eighth of the tile.

    Raises:
        ConfigError: numbers that make no tiles.
    """
    if tile is None:
        wanted = model.transform.tile
        return None if wanted is None else Tiling(wanted[0], wanted[1])
    return Tiling(tile, max(1, tile // 8) if overlap is None else overlap) if tile else None


def check_options(
    record: Weights, *, detections: int | None = None, tile: int | None = None, overlap: int | None = None
) -> None:
    """Refuse options of ``load`` that the model of a record cannot follow, before anything is loaded; see there."""
    if detections is None and not tile:
        return
    with torch.device("meta"):
        model = create_model(record.architecture, **record.config)
    if detections is not None:
        model.limit_detections(detections)
    if tiling_of(model, tile, overlap) is not None:
        check_can_be_tiled(model, record)


def builds_video_model(record: Weights) -> bool:
    """Whether the model of a record carries a state from frame to frame; nothing is allocated (meta device)."""
    with torch.device("meta"):
        return isinstance(create_model(record.architecture, **record.config), VideoModel)


def resolve(name: str, weights: str | None, config: Mapping[str, Any] | None) -> tuple[VisionModel, Weights]:
    """Model and record of what is meant; see :func:`load`."""
    source = find_source(name)
    if source is not None:
        refuse_weights(weights, name)
        _refuse_config(config, name)
        return source(name)
    location = files_of(name)
    if location is None and weights is None and ":" in name:
        name, weights = name.split(":", 1)
    if location is not None:
        refuse_weights(weights, name)
        _refuse_config(config, name)
        return load_weights(location)
    check_known(name)
    weights = weights or _default_weights(name)
    seed = _RANDOM.fullmatch(weights)
    if seed:
        return random_weights(name, int(seed[1]), config)
    _refuse_config(config, f"{name}:{weights}")
    return _of_registered(name, weights)


def _of_registered(name: str, weights: str) -> tuple[VisionModel, Weights]:
    location = files_of(weights)
    if location is None:
        entry = find_published(name, weights)
        location = translated(name, weights)
        if not location.exists():
            import_weights(name, fetch(entry.file), location.parent, weights_name=location.stem)
    model, record = load_weights(location)
    if record.architecture != name:
        raise WeightsError(f"{location} holds weights of {record.architecture!r}, not of {name!r}")
    return model, record


def _default_weights(name: str) -> str:
    published = find_model(name).weights
    if not published:
        raise WeightsError(
            f"model {name!r} has no published weights; give a weights file, or random:SEED for untrained ones, "
            f"or use what comes along: {', '.join(each.name for each in shipped_records())}"
        )
    return published[0]


def _refuse_config(config: Mapping[str, Any] | None, where: str) -> None:
    if config:
        raise ConfigError(f"{where} carries its own config; options are taken for random:SEED weights only")
