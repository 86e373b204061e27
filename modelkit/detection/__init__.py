"""Detectors. Importing this package registers them."""

from modelkit.detection.keypoints import KeypointHead, KeypointRCNN
from modelkit.detection.models import densepose_rcnn, faster_rcnn, keypoint_rcnn, mask_rcnn
from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.proposals import ProposalHead
from modelkit.detection.roi_heads import BoxHead, MaskHead
from modelkit.detection.surfaces import DensePoseRCNN, SurfaceHead
from modelkit.detection.targets import ProposalSampler, Samples
from modelkit.detection.two_stage import Detections, TwoStageDetector

__all__ = [
    "BoxHead",
    "DensePoseRCNN",
    "Detections",
    "KeypointHead",
    "KeypointRCNN",
    "MaskHead",
    "ProposalHead",
    "ProposalSampler",
    "PyramidRoIAlign",
    "Samples",
    "SurfaceHead",
    "TwoStageDetector",
    "densepose_rcnn",
    "faster_rcnn",
    "keypoint_rcnn",
    "mask_rcnn",
]
