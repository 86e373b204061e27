"""Segmentation models of Hugging Face transformers, from a local folder or the hub: ``modelkit.load("hf:LOCATION")``.

SegFormer gives semantic maps; Mask2Former, MaskFormer and DETR give instances or panoptic segments. Needs the extra
``visionmill[hf]``. Code that comes with a checkpoint is never run, and only safetensors are read.

There is one registered model for each kind, so that configs, weights and records are like any other's. Their config
holds transformers' own as plain JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.errors import ConfigError, WeightsError, WeightsUnavailableError
from modelkit.huggingface.network import HuggingFaceNetwork, transformers_module
from modelkit.huggingface.queries import PANOPTIC, things_of
from modelkit.registry import create_model
from modelkit.transform import ImageTransform
from modelkit.weights import Tolerates, Weights, describe_preprocessing, num_parameters, serialise

PREFIX = "hf"
_SEMANTIC = ("SegformerForSemanticSegmentation",)
_QUERIES = ("Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation", "DetrForSegmentation")
_KINDS = ("semantic", "instance", "panoptic")


def load_huggingface(name: str) -> tuple[VisionModel, Weights]:
    """Model and record of a checkpoint in transformers' format.

    Args:
        name: "hf:LOCATION" or "hf:KIND:LOCATION" with a local folder or "owner/name" on the hub, and "instance" or
            "panoptic" for models that can do both. Without it, those that know COCO's 133 panoptic classes or have
            "panoptic" in their name are panoptic.

    Raises:
        ConfigError: transformers is not installed, or the architecture is none of those above.
        WeightsUnavailableError: nothing there, or the hub cannot be reached.
        WeightsError: no safetensors, or tensors that do not fit.
    """
    wanted, location = _split(name)
    transformers = transformers_module()
    config = _fetch(name, lambda: transformers.AutoConfig.from_pretrained(location, trust_remote_code=False))
    architecture = (config.architectures or ["none"])[0]
    if architecture not in _SEMANTIC + _QUERIES:
        raise ConfigError(f"{name} is a {architecture}; the adapter knows {', '.join(_SEMANTIC + _QUERIES)}")
    kind = _kind_of(architecture, wanted, location, len(config.id2label))
    builder = getattr(transformers, architecture)
    theirs = _fetch(name, lambda: builder.from_pretrained(location, trust_remote_code=False, use_safetensors=True))
    processor = _fetch(
        name, lambda: transformers.image_processing_utils.BaseImageProcessor.get_image_processor_dict(location)
    )
    model = create_model(
        f"huggingface_{kind}",
        architecture=architecture,
        config=json.loads(config.to_json_string(use_diff=False)),
        num_classes=len(config.id2label),
        transform=transform_of(processor[0]),
    )
    cast(HuggingFaceNetwork, model.network).model.load_state_dict(theirs.state_dict())
    return model.eval(), _record(model, kind, architecture, location, config.id2label)


def _split(name: str) -> tuple[str | None, str]:
    rest = name.removeprefix(f"{PREFIX}:")
    first, _, location = rest.partition(":")
    return (first, location) if first in _KINDS and location else (None, rest)


def _fetch(name: str, get: Any) -> Any:
    try:
        return get()
    except (OSError, ValueError) as error:  # what transformers raises for absent files, refused pickles and the network
        reason = " ".join(str(error).split())[:300]
        kind = WeightsError if "safetensors" in reason else WeightsUnavailableError
        raise kind(f"{name} cannot be loaded: {reason}") from error


def _kind_of(architecture: str, wanted: str | None, location: str, num_labels: int) -> str:
    if architecture in _SEMANTIC:
        possible: tuple[str, ...] = ("semantic",)
    else:
        possible = (
            ("panoptic", "instance") if num_labels in PANOPTIC or "panoptic" in location else ("instance", "panoptic")
        )
    if wanted is not None and wanted not in possible:
        raise ConfigError(f"{architecture} gives {' or '.join(possible)} segmentation, not {wanted}")
    return wanted or possible[0]


def transform_of(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``ImageTransform`` from a preprocessor_config.json.

    Images are stretched to the nearest usual aspect ratio instead of padded, because these models attend to everything.
    """
    size = processor.get("size") or 512
    if isinstance(size, int):
        size = {"shortest_edge": size}
    short = size.get("shortest_edge") or min(size["height"], size["width"])
    long = (
        size.get("longest_edge")
        or processor.get("max_size")
        or (max(size.get("height", 0), size.get("width", 0), short))
    )
    normalises = processor.get("do_normalize", True)
    transform = ImageTransform(
        min_size=short,
        max_size=max(short, long),
        mean=processor.get("image_mean") or (0.485, 0.456, 0.406) if normalises else (0.0, 0.0, 0.0),
        std=processor.get("image_std") or (0.229, 0.224, 0.225) if normalises else (1.0, 1.0, 1.0),
        size_divisible=32,
        padding="stretch",
        antialias=True,
    )
    return transform.to_config()


def _record(model: VisionModel, kind: str, architecture: str, location: str, names: Mapping[Any, str]) -> Weights:
    things = things_of(len(names))
    classes = tuple(ClassInfo(int(k), str(v), kind != "semantic" and int(k) in things) for k, v in names.items())
    source = Path(location).name if Path(location).exists() else location
    return Weights(
        name=f"hf-{source.replace('/', '-')}-{kind}",
        architecture=model.config["name"],
        config={key: value for key, value in model.config.items() if key != "name"},
        kind=kind,
        classes=tuple(sorted(classes, key=lambda each: each.id)),
        preprocessing=describe_preprocessing(model),
        digest=hashlib.sha256(serialise(model.state_dict())).hexdigest(),
        num_parameters=num_parameters(model),
        lineage={"kind": "huggingface", "architecture": architecture, "location": source},
        licence="see the model's card",
        tolerates=Tolerates(),
    )
