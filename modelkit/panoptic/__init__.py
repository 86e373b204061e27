"""Panoptic segmentation: things and stuff in one map. Importing this package registers its models."""

from modelkit.panoptic.flow import Flow, RaftFlow, ZeroFlow
from modelkit.panoptic.fusion import FusionHead, PanopticMerge
from modelkit.panoptic.models import panoptic_fpn, vpsnet
from modelkit.panoptic.segmentor import PanopticSegmentor
from modelkit.panoptic.segments import NOT_TRACKED, PanopticMap, Regions
from modelkit.panoptic.semantic_heads import DeformableSemanticHead, SemanticFPNHead
from modelkit.panoptic.targets import complete_target
from modelkit.panoptic.temporal import TemporalFusion
from modelkit.panoptic.tracking import TrackHead
from modelkit.panoptic.upsnet import PanopticFusionHead, panoptic_argmax, panoptic_logits
from modelkit.panoptic.vpsnet import VPSNet

__all__ = [
    "NOT_TRACKED",
    "DeformableSemanticHead",
    "Flow",
    "FusionHead",
    "PanopticFusionHead",
    "PanopticMap",
    "PanopticMerge",
    "PanopticSegmentor",
    "RaftFlow",
    "Regions",
    "SemanticFPNHead",
    "TemporalFusion",
    "TrackHead",
    "VPSNet",
    "ZeroFlow",
    "complete_target",
    "panoptic_argmax",
    "panoptic_fpn",
    "panoptic_logits",
    "vpsnet",
]
