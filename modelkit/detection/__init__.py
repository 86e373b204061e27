"""Detectors. Importing this package registers them."""

from modelkit.detection.models import (
    faster_rcnn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    mask_rcnn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.proposals import ProposalHead
from modelkit.detection.roi_heads import BoxHead, MaskHead
from modelkit.detection.targets import ProposalSampler, Samples
from modelkit.detection.two_stage import Detections, TwoStageDetector

__all__ = [
    "BoxHead",
    "Detections",
    "MaskHead",
    "ProposalHead",
    "ProposalSampler",
    "PyramidRoIAlign",
    "Samples",
    "TwoStageDetector",
    "faster_rcnn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "mask_rcnn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
]
