"""Semantic segmentation models. Importing this package registers them."""

from modelkit.semantic.composition import BackboneAndHead, SemanticHead
from modelkit.semantic.deeplab import DeepLabV3PlusHead
from modelkit.semantic.fcn import FCNHead
from modelkit.semantic.losses import LossConfig
from modelkit.semantic.models import segmentor
from modelkit.semantic.segmentor import SemanticMap, SemanticSegmentor
from modelkit.semantic.torchvision_models import (
    TorchvisionNetwork,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    fcn_resnet50,
    fcn_resnet101,
    lraspp_mobilenet_v3_large,
)
from modelkit.semantic.unet import UNetDecoder, UNetEncoder

__all__ = [
    "BackboneAndHead",
    "DeepLabV3PlusHead",
    "FCNHead",
    "LossConfig",
    "SemanticHead",
    "SemanticMap",
    "SemanticSegmentor",
    "TorchvisionNetwork",
    "UNetDecoder",
    "UNetEncoder",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
    "segmentor",
]
