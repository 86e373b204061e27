"""The registered models: one for each kind, listed nowhere, for they exist only with somebody else's weights."""

from __future__ import annotations

from modelkit.huggingface.checkpoints import PREFIX, load_huggingface
from modelkit.huggingface.network import HuggingFaceNetwork
from modelkit.huggingface.queries import QuerySegmentor
from modelkit.registry import Config, register_model, register_source
from modelkit.semantic.segmentor import SemanticSegmentor, Upsample

register_source(PREFIX, load_huggingface)


@register_model("huggingface_semantic", architecture="SemanticSegmentor", kind="semantic", listed=False)
def huggingface_semantic(
    *, architecture: str, config: Config, num_classes: int, transform: Config, upsample: Upsample = "network"
) -> SemanticSegmentor:
    """SegFormer: a class for every pixel, all of them stuff."""
    return SemanticSegmentor(
        HuggingFaceNetwork(architecture, config),
        num_classes=num_classes,
        transform=transform,
        upsample=upsample,
        background=None,
    )


@register_model("huggingface_instance", architecture="QuerySegmentor", kind="instance", listed=False)
def huggingface_instance(
    *, architecture: str, config: Config, num_classes: int, transform: Config, min_score: float = 0.5
) -> QuerySegmentor:
    """Mask2Former, MaskFormer and DETR: instances, which may overlap."""
    return _queries(architecture, config, num_classes, transform, min_score, is_panoptic=False)


@register_model("huggingface_panoptic", architecture="QuerySegmentor", kind="panoptic", listed=False)
def huggingface_panoptic(
    *, architecture: str, config: Config, num_classes: int, transform: Config, min_score: float = 0.5
) -> QuerySegmentor:
    """The same: one segment for every pixel."""
    return _queries(architecture, config, num_classes, transform, min_score, is_panoptic=True)


def _queries(
    architecture: str, config: Config, num_classes: int, transform: Config, min_score: float, *, is_panoptic: bool
) -> QuerySegmentor:
    return QuerySegmentor(
        HuggingFaceNetwork(architecture, config),
        num_classes=num_classes,
        transform=transform,
        is_panoptic=is_panoptic,
        min_score=min_score,
    )
