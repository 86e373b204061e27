"""The registered models: one for each kind, listed nowhere, for they exist only with somebody else's weights."""

from __future__ import annotations

from collections.abc import Sequence

from modelkit.base import VisionModel
from modelkit.errors import ConfigError
from modelkit.huggingface.checkpoints import PREFIX, load_huggingface
from modelkit.huggingface.label_sets import things_of
from modelkit.huggingface.network import HuggingFaceNetwork
from modelkit.huggingface.poses import MARGIN, PoseModel, PoseNetwork
from modelkit.huggingface.queries import QuerySegmentor
from modelkit.huggingface.query_masks import QueryDisjoint, QueryInstances, QueryMasks, QueryPanoptic, QuerySemantic
from modelkit.registry import Config, register_model, register_source
from modelkit.semantic.segmentor import SemanticSegmentor, Upsample

_GRIDS = {"Mask2FormerForUniversalSegmentation": (384, 384)}
_SEMANTIC = ("SegformerForSemanticSegmentation",)
_DISJOINT = ("DetrForSegmentation",)

register_source(PREFIX, load_huggingface)


@register_model("huggingface_semantic", architecture="SemanticSegmentor", kind="semantic", listed=False)
def huggingface_semantic(
    *, architecture: str, config: Config, num_classes: int, transform: Config, upsample: Upsample = "grid"
) -> VisionModel:
    """A class for every pixel, all stuff: SegFormer, or what the queries of the others say together."""
    if architecture not in _SEMANTIC:
        return _queries(QuerySemantic, architecture, config, num_classes, transform, (), 0.0)
    return SemanticSegmentor(
        HuggingFaceNetwork(architecture, config),
        num_classes=num_classes,
        transform=transform,
        upsample=upsample,
        background=None,
    )


@register_model("huggingface_instance", architecture="QuerySegmentor", kind="instance", listed=False)
def huggingface_instance(
    *,
    architecture: str,
    config: Config,
    num_classes: int,
    transform: Config,
    things: Sequence[int] | None = None,
    min_score: float = 0.5,
) -> QuerySegmentor:
    """Mask2Former and MaskFormer: instances, which may overlap; DETR: at most one for every pixel."""
    reading = QueryDisjoint if architecture in _DISJOINT else QueryInstances
    return _queries(reading, architecture, config, num_classes, transform, things, min_score)


@register_model("huggingface_panoptic", architecture="QuerySegmentor", kind="panoptic", listed=False)
def huggingface_panoptic(
    *,
    architecture: str,
    config: Config,
    num_classes: int,
    transform: Config,
    things: Sequence[int] | None = None,
    min_score: float = 0.5,
) -> QuerySegmentor:
    """The same three: at most one segment for every pixel."""
    return _queries(QueryPanoptic, architecture, config, num_classes, transform, things, min_score)


@register_model("huggingface_keypoints", architecture="PoseModel", kind="keypoints", listed=False)
def huggingface_keypoints(
    *,
    architecture: str,
    config: Config,
    num_keypoints: int,
    transform: Config,
    margin: float = MARGIN,
    flip_pairs: Sequence[Sequence[int]] = (),
    flip_test: bool = False,
) -> PoseModel:
    """ViTPose: the points of one object at a time."""
    return PoseModel(
        network=PoseNetwork(architecture, config),
        num_keypoints=num_keypoints,
        transform=transform,
        margin=margin,
        flip_pairs=flip_pairs,
        flip_test=flip_test,
    )


def _queries(
    reading: type[QueryMasks],
    architecture: str,
    config: Config,
    num_classes: int,
    transform: Config,
    things: Sequence[int] | None,
    min_score: float,
) -> QuerySegmentor:
    if architecture in _SEMANTIC:
        raise ConfigError(f"{architecture} gives a class for every pixel, no objects")
    return QuerySegmentor(
        HuggingFaceNetwork(architecture, config),
        num_classes=num_classes,
        transform=transform,
        reading=reading,
        things=things_of(num_classes) if things is None else frozenset(things),
        min_score=min_score,
        grid=_GRIDS.get(architecture),
    )
