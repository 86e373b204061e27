"""Panoptic segmentation: things and stuff in one map. Importing this package registers its models."""

from modelkit.panoptic.fusion import FusionHead, PanopticMerge
from modelkit.panoptic.models import panoptic_fpn
from modelkit.panoptic.segmentor import PanopticSegmentor
from modelkit.panoptic.segments import NOT_TRACKED, PanopticMap, Regions
from modelkit.panoptic.semantic_heads import DeformableSemanticHead, SemanticFPNHead
from modelkit.panoptic.targets import complete_target
from modelkit.panoptic.upsnet import PanopticFusionHead, panoptic_argmax, panoptic_logits

__all__ = [
    "NOT_TRACKED",
    "DeformableSemanticHead",
    "FusionHead",
    "PanopticFusionHead",
    "PanopticMap",
    "PanopticMerge",
    "PanopticSegmentor",
    "Regions",
    "SemanticFPNHead",
    "complete_target",
    "panoptic_argmax",
    "panoptic_fpn",
    "panoptic_logits",
]
