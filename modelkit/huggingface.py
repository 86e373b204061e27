"""Segmentation models of Hugging Face transformers, from a local folder or the hub: ``modelkit.load("hf:LOCATION")``.

SegFormer gives semantic maps; Mask2Former, MaskFormer and DETR give instances or panoptic segments. Needs the extra
``visionmill[hf]``. Code that comes with a checkpoint is never run, and only safetensors are read.

One model per task is registered on first use, so that configs, weights and records are like any other's. Their config
holds transformers' own as plain JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.errors import ConfigError, WeightsError, WeightsUnavailableError
from modelkit.loading import HF_PREFIX
from modelkit.query_masks import QueryMasks
from modelkit.registry import Config, Task, create_model, model_names, register_model
from modelkit.semantic import SemanticSegmentor
from modelkit.semantic.segmentor import Upsample
from modelkit.transform import Geometry, ImageTransform
from modelkit.weights import ClassInfo, Tolerates, Weights, describe_preprocessing, num_parameters, serialise

_SEMANTIC = ("SegformerForSemanticSegmentation",)
_QUERIES = ("Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation", "DetrForSegmentation")
_TASKS: tuple[Task, ...] = ("semantic", "instance", "panoptic")
# transformers does not say which classes are things. By their number the sets are known: COCO's panoptic classes in a
# row, the same under their original ids (DETR), Cityscapes.
_PANOPTIC = {133: range(80), 250: range(1, 91)}
_THINGS = {**_PANOPTIC, 19: range(11, 19)}


def load_huggingface(name: str) -> tuple[VisionModel, Weights]:
    """Model and record of a checkpoint in transformers' format.

    Args:
        name: "hf:LOCATION" or "hf:TASK:LOCATION" with a local folder or "owner/name" on the hub, and "instance" or
            "panoptic" for models that can do both. Without it, those that know COCO's 133 panoptic classes or have
            "panoptic" in their name are panoptic.

    Raises:
        ConfigError: transformers is not installed, or the architecture is none of those above.
        WeightsUnavailableError: nothing there, or the hub cannot be reached.
        WeightsError: no safetensors, or tensors that do not fit.
    """
    task, location = _split(name)
    transformers = _transformers()
    config = _fetch(name, lambda: transformers.AutoConfig.from_pretrained(location, trust_remote_code=False))
    architecture = (config.architectures or ["none"])[0]
    if architecture not in _SEMANTIC + _QUERIES:
        raise ConfigError(f"{name} is a {architecture}; the adapter knows {', '.join(_SEMANTIC + _QUERIES)}")
    task = _task_of(architecture, task, location, len(config.id2label))
    builder = getattr(transformers, architecture)
    theirs = _fetch(name, lambda: builder.from_pretrained(location, trust_remote_code=False, use_safetensors=True))
    processor = _fetch(
        name, lambda: transformers.image_processing_utils.BaseImageProcessor.get_image_processor_dict(location)
    )
    register_models()
    model = create_model(
        f"huggingface_{task}",
        architecture=architecture,
        config=json.loads(config.to_json_string(use_diff=False)),
        num_classes=len(config.id2label),
        transform=transform_of(processor[0]),
    )
    _network(model).load_state_dict(theirs.state_dict())
    return model.eval(), _record(model, task, architecture, location, config.id2label)


def _split(name: str) -> tuple[Task | None, str]:
    rest = name.removeprefix(HF_PREFIX)
    first, _, location = rest.partition(":")
    return (cast(Task, first), location) if first in _TASKS and location else (None, rest)


def _transformers() -> ModuleType:
    try:
        import transformers
        import transformers.image_processing_utils
    except ImportError as error:
        raise ConfigError(
            f"models of Hugging Face need the package transformers, which cannot be imported ({error}); "
            "install it with: pip install 'visionmill[hf]'"
        ) from error
    return transformers


def _fetch(name: str, get: Any) -> Any:
    try:
        return get()
    except (OSError, ValueError) as error:  # what transformers raises for absent files, refused pickles and the network
        reason = " ".join(str(error).split())[:300]
        kind = WeightsError if "safetensors" in reason else WeightsUnavailableError
        raise kind(f"{name} cannot be loaded: {reason}") from error


def _task_of(architecture: str, wanted: Task | None, location: str, num_labels: int) -> Task:
    if architecture in _SEMANTIC:
        possible: tuple[Task, ...] = ("semantic",)
    else:
        possible = (
            ("panoptic", "instance") if num_labels in _PANOPTIC or "panoptic" in location else ("instance", "panoptic")
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


def _record(model: VisionModel, task: Task, architecture: str, location: str, names: Mapping[Any, str]) -> Weights:
    things = _things(len(names))
    classes = tuple(ClassInfo(int(k), str(v), task != "semantic" and int(k) in things) for k, v in names.items())
    source = Path(location).name if Path(location).exists() else location
    return Weights(
        name=f"hf-{source.replace('/', '-')}-{task}",
        architecture=model.config["name"],
        config={key: value for key, value in model.config.items() if key != "name"},
        task=task,
        classes=tuple(sorted(classes, key=lambda each: each.id)),
        preprocessing=describe_preprocessing(model),
        digest=hashlib.sha256(serialise(model.state_dict())).hexdigest(),
        num_parameters=num_parameters(model),
        lineage={"kind": "huggingface", "architecture": architecture, "location": source},
        licence="see the model's card",
        tolerates=Tolerates(),
    )


def _things(num_labels: int) -> range:
    return _THINGS.get(num_labels, range(num_labels))


class HuggingFaceNetwork(nn.Module):
    """A transformers model, called with pixels and giving a flat dict of its logits.

    Args:
        architecture: class name in transformers.
        config: its config as plain JSON, with "model_type".
    """

    def __init__(self, architecture: str, config: Config) -> None:
        super().__init__()
        transformers = _transformers()
        options = {key: value for key, value in config.items() if key != "model_type"}
        self.model: nn.Module = getattr(transformers, architecture)(
            transformers.AutoConfig.for_model(config["model_type"], **options)
        )

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` (N, C, h, w) of semantic models; else ``classes`` (N, Q, C + 1) and ``masks`` (N, Q, h, w)."""
        out = self.model(pixel_values=batch)
        if hasattr(out, "class_queries_logits"):
            return {"classes": out.class_queries_logits, "masks": out.masks_queries_logits}
        if hasattr(out, "pred_masks"):
            return {"classes": out.logits, "masks": out.pred_masks}
        return {"logits": out.logits}


class QuerySegmentor(VisionModel):
    """Queries that each know a class and a mask (Carion et al. 2020, Cheng et al. 2021).

    Args:
        network: see ``HuggingFaceNetwork``.
        num_classes: C; one more stands for nothing.
        transform: options of ``ImageTransform``.
        is_panoptic: one segment per pixel, stuff merged; else overlapping instances.
        min_score: of panoptic segments.
    """

    def __init__(
        self, network: nn.Module, *, num_classes: int, transform: Config, is_panoptic: bool, min_score: float
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.transform = ImageTransform.from_config(transform)
        self.is_panoptic, self.min_score = is_panoptic, min_score
        self.loss_weights = {}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Not to be had: raises ConfigError. Such models are trained with transformers itself."""
        raise ConfigError("models of Hugging Face that answer queries are trained with transformers, not here")

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """``classes`` (N, Q, C + 1) logits, the last for nothing, and ``masks`` (N, Q, h, w) logits."""
        return self.network(batch)

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[QueryMasks]:
        """One per image, in source pixels once it is asked for instances."""
        things = frozenset(_things(self.num_classes))
        return [
            QueryMasks(
                size_hw=geometry.source_hw,
                probabilities=classes.float().softmax(-1)[:, :-1],
                logits=masks.float(),
                things=things,
                is_panoptic=self.is_panoptic,
                min_score=self.min_score,
            )
            for classes, masks, geometry in zip(raw["classes"], raw["masks"], geometries, strict=True)
        ]


def _network(model: VisionModel) -> nn.Module:
    return cast(HuggingFaceNetwork, model.network).model


def register_models() -> None:
    """Make the adapter's models known to this process; they are not listed before anybody asks for one."""
    if "huggingface_semantic" in model_names():
        return

    @register_model("huggingface_semantic", architecture="SemanticSegmentor", task="semantic")
    def semantic(
        *, architecture: str, config: Config, num_classes: int, transform: Config, upsample: Upsample = "network"
    ) -> SemanticSegmentor:
        return SemanticSegmentor(
            HuggingFaceNetwork(architecture, config),
            num_classes=num_classes,
            transform=transform,
            upsample=upsample,
            background=None,
        )

    for task in ("instance", "panoptic"):
        register_model(f"huggingface_{task}", architecture="QuerySegmentor", task=cast(Task, task))(_queries(task))


def _queries(task: str) -> Any:
    def build(
        *, architecture: str, config: Config, num_classes: int, transform: Config, min_score: float = 0.5
    ) -> QuerySegmentor:
        return QuerySegmentor(
            HuggingFaceNetwork(architecture, config),
            num_classes=num_classes,
            transform=transform,
            is_panoptic=task == "panoptic",
            min_score=min_score,
        )

    return build
