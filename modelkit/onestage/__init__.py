"""One-stage detectors. Importing this package registers them."""

from modelkit.onestage.detector import AnchorDetector, GridDetections
from modelkit.onestage.edge import VideoAnchorDetector
from modelkit.onestage.flow import PartialFeatureTransform
from modelkit.onestage.head import ProtoNet, YolactHead
from modelkit.onestage.models import yolact, yolact_edge
from modelkit.onestage.pyramid import YolactFPN
from modelkit.onestage.torchvision_models import (
    TorchvisionDetector,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
    ssd300_vgg16,
    ssdlite320_mobilenet_v3_large,
)

__all__ = [
    "AnchorDetector",
    "GridDetections",
    "PartialFeatureTransform",
    "ProtoNet",
    "TorchvisionDetector",
    "VideoAnchorDetector",
    "YolactFPN",
    "YolactHead",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "yolact",
    "yolact_edge",
]
