"""Models of Hugging Face transformers, from a local folder or the hub: ``modelkit.load("hf:LOCATION")``.

SegFormer gives semantic maps; Mask2Former, MaskFormer and DETR give semantic maps, instances or panoptic segments;
ViTPose gives points on objects that somebody else found.
Needs the extra ``visionmill[hf]``. Code that comes with a checkpoint is never run, and only safetensors are read.
Images are prepared, and outputs read, as transformers' own processors do it.

There is one registered model for each kind, so that configs, weights and records are like any other's. Their config
holds transformers' own as plain JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.errors import ConfigError, WeightsError, WeightsUnavailableError
from modelkit.huggingface.label_sets import known_set, things_among
from modelkit.huggingface.network import HuggingFaceNetwork, transformers_module
from modelkit.huggingface.poses import points_of, pose_options
from modelkit.records import Tolerates, Weights
from modelkit.registry import create_model
from modelkit.transform import ImageTransform
from modelkit.weights import describe_preprocessing, num_parameters, serialise

PREFIX = "hf"
# What models of these architectures can give.
_ARCHITECTURES = {
    "SegformerForSemanticSegmentation": ("semantic",),
    "Mask2FormerForUniversalSegmentation": ("semantic", "instance", "panoptic"),
    "MaskFormerForInstanceSegmentation": ("semantic", "instance", "panoptic"),
    "DetrForSegmentation": ("semantic", "instance", "panoptic"),
    "VitPoseForPoseEstimation": ("keypoints",),
}
# Of image processors: values that are understood, the usual one first.
_BICUBIC = (3, "bicubic")
_RULES = {"resample": (2, "bilinear", *_BICUBIC, None), "do_rescale": (True, None), "rescale_factor": (1 / 255, None)}
_MOST = 8  # times as long as the shorter side: where a processor sets no limit


def load_huggingface(name: str) -> tuple[VisionModel, Weights]:
    """Model and record of a checkpoint in transformers' format.

    Args:
        name: "hf:LOCATION" or "hf:KIND:LOCATION" with a local folder or "owner/name" on the hub, and "semantic",
            "instance" or "panoptic" for models that can do several. Without it the checkpoint has to say: by a "task"
            in its config, by its name, or by classes that only one kind has (COCO's 133 panoptic ones).

    Raises:
        ConfigError: transformers is not installed, the architecture is none of those above, it is not to be seen what
            the model does, or images are prepared in a way that is not known here.
        WeightsUnavailableError: nothing there, or the hub cannot be reached.
        WeightsError: no safetensors, or tensors that do not fit.
    """
    wanted, location = _split(name)
    transformers = transformers_module()
    config = _fetch(name, lambda: transformers.AutoConfig.from_pretrained(location, trust_remote_code=False))
    architecture = (config.architectures or ["none"])[0]
    if architecture not in _ARCHITECTURES:
        raise ConfigError(f"{name} is a {architecture}; the adapter knows {', '.join(_ARCHITECTURES)}")
    plain = json.loads(config.to_json_string(use_diff=False))
    names = {int(label): str(said) for label, said in config.id2label.items()}
    kind = _kind_of(name, architecture, wanted, location, plain, names)
    builder = getattr(transformers, architecture)
    theirs = _fetch(name, lambda: builder.from_pretrained(location, trust_remote_code=False, use_safetensors=True))
    processor = _fetch(name, lambda: transformers.AutoImageProcessor.from_pretrained(location, trust_remote_code=False))
    points = points_of(names, plain) if kind == "keypoints" else None
    if points is not None:
        options = pose_options(processor.to_dict(), points)
    else:
        options = _segmentation_options(processor.to_dict(), kind, names, plain.get("label_ids_to_fuse"))
    model = create_model(f"huggingface_{kind}", architecture=architecture, config=plain, **options)
    network = model.network
    assert isinstance(network, HuggingFaceNetwork)
    network.model.load_state_dict(theirs.state_dict())
    return model.eval(), _record(model, kind, architecture, location, names, points)


def _segmentation_options(
    processor: Mapping[str, Any], kind: str, names: Mapping[int, str], fused: Sequence[int] | None
) -> dict[str, Any]:
    things = {} if kind == "semantic" else {"things": things_among(names, fused)}
    return {"num_classes": len(names), "transform": transform_of(processor), **things}


def _split(name: str) -> tuple[str | None, str]:
    rest = name.removeprefix(f"{PREFIX}:")
    first, _, location = rest.partition(":")
    kinds = {kind for possible in _ARCHITECTURES.values() for kind in possible}
    return (first, location) if first in kinds and location else (None, rest)


def _fetch(name: str, get: Any) -> Any:
    try:
        return get()
    except (OSError, ValueError) as error:  # what transformers raises for absent files, refused pickles and the network
        reason = " ".join(str(error).split())[:300]
        kind = WeightsError if "safetensors" in reason else WeightsUnavailableError
        raise kind(f"{name} cannot be loaded: {reason}") from error


def _kind_of(
    name: str,
    architecture: str,
    wanted: str | None,
    location: str,
    config: Mapping[str, Any],
    names: Mapping[int, str],
) -> str:
    """What the model does: as asked for, or as the checkpoint says; never a guess."""
    possible = _ARCHITECTURES[architecture]
    if wanted is not None and wanted not in possible:
        raise ConfigError(f"{architecture} gives {' or '.join(possible)}, not {wanted}")
    known = known_set(names)
    named = re.findall("|".join(possible), Path(location).name.lower())
    said = (wanted, config.get("task"), *named[-1:], known and known.kind, *(possible if len(possible) == 1 else ()))
    found = next((each for each in said if each in possible), None)
    if found is None:
        ways = ", ".join(f"{PREFIX}:{kind}:{location}" for kind in possible)
        raise ConfigError(f"{name} does not say what it does; ask for one of {ways}")
    return found


def transform_of(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``ImageTransform`` that show images as one of transformers' image processors shows them.

    Args:
        processor: its ``to_dict()``, or a preprocessor_config.json.

    Raises:
        ConfigError: a rule that is not known here: cropping, padding to a fixed size, resizing by other curves,
            other values than 0 .. 1 before normalising.
    """
    unknown = [key for key in ("do_center_crop", "pad_size") if processor.get(key)]
    unknown += [f"{key}={processor[key]}" for key, known in _RULES.items() if processor.get(key, known[0]) not in known]
    if unknown:
        raise ConfigError(f"images cannot be prepared as the checkpoint's processor does: {', '.join(unknown)}")
    normalises = processor.get("do_normalize", True) is not False
    return ImageTransform(
        **_size_rule(processor),
        mean=processor.get("image_mean") or (0.485, 0.456, 0.406) if normalises else (0.0, 0.0, 0.0),
        std=processor.get("image_std") or (0.229, 0.224, 0.225) if normalises else (1.0, 1.0, 1.0),
        antialias=True,
        resizing="bicubic" if processor.get("resample") in _BICUBIC else "uint8",
    ).to_config()


def _size_rule(processor: Mapping[str, Any]) -> dict[str, Any]:
    """How large an image is made, by the words of transformers; nothing is padded."""
    if processor.get("do_resize", True) is False:
        return {"scale": 1.0, "padding": "none", "size_divisible": 1, "max_size": 4096, "min_size": 1}
    size = processor.get("size") or 512
    if isinstance(size, int):  # of old: a square, or with a limit the shorter side
        limit = processor.get("max_size")
        size = {"shortest_edge": size, "longest_edge": limit} if limit else {"height": size, "width": size}
    if size.get("height") and size.get("width"):
        rows, columns = int(size["height"]), int(size["width"])
        bounds = {"min_size": min(rows, columns), "max_size": max(rows, columns), "size_divisible": 1}
        return bounds | ({"padding": "square"} if rows == columns else {"padding": "none", "fixed_hw": (rows, columns)})
    if not size.get("shortest_edge"):
        raise ConfigError(f"images cannot be resized as the checkpoint's processor does: size={dict(size)}")
    short = int(size["shortest_edge"])
    long = int(size.get("longest_edge") or processor.get("max_size") or _MOST * short)
    divisor = int(processor.get("size_divisor") or 0)
    return {
        "min_size": short,
        "max_size": max(short, long),
        "fit": "short",
        "padding": "multiple" if divisor else "none",
        "size_divisible": divisor or 1,
    }


def _record(
    model: VisionModel,
    kind: str,
    architecture: str,
    location: str,
    names: Mapping[int, str],
    points: KeypointSet | None,
) -> Weights:
    numbered = model.anonymous_classes()
    things = {each.id for each in numbered if each.is_thing}
    named = tuple(ClassInfo(label, name, label in things) for label, name in sorted(names.items()))
    source = Path(location).name if Path(location).exists() else location
    return Weights(
        name=f"hf-{source.replace('/', '-')}-{kind}",
        architecture=model.config["name"],
        config={key: value for key, value in model.config.items() if key != "name"},
        kind=kind,
        classes=named if points is None else numbered,  # the names are those of the points
        preprocessing=describe_preprocessing(model),
        digest=hashlib.sha256(serialise(model.state_dict())).hexdigest(),
        num_parameters=num_parameters(model),
        lineage={"kind": "huggingface", "architecture": architecture, "location": source},
        licence="see the model's card",
        tolerates=Tolerates(),
        keypoints=points,
    )
