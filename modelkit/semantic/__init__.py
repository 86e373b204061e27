"""Semantic segmentation models. Importing this package registers them."""

from modelkit.semantic.models import (
    TorchvisionNetwork,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    fcn_resnet50,
    fcn_resnet101,
    lraspp_mobilenet_v3_large,
)
from modelkit.semantic.segmentor import SemanticMap, SemanticSegmentor

__all__ = [
    "SemanticMap",
    "SemanticSegmentor",
    "TorchvisionNetwork",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
]
