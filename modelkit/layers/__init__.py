"""Backbones and necks. Importing this package registers them."""

from modelkit.layers.backbones import Backbone, MobileNetV3Backbone, ResNetBackbone, SlimResNetBackbone
from modelkit.layers.darknet import DarkNetBackbone
from modelkit.layers.efficientnet_lite import EfficientNetLiteBackbone
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.layers.mobilenet_v1 import MobileNetV1Backbone
from modelkit.layers.mobilenet_v2 import MobileNetV2Backbone
from modelkit.layers.necks import FPN, PassThrough
from modelkit.layers.norms import norm_layer
from modelkit.layers.vgg import VGGBackbone

__all__ = [
    "FPN",
    "Backbone",
    "DarkNetBackbone",
    "EfficientNetLiteBackbone",
    "MobileNetV1Backbone",
    "MobileNetV2Backbone",
    "MobileNetV3Backbone",
    "PassThrough",
    "ResNetBackbone",
    "SlimResNetBackbone",
    "VGGBackbone",
    "kaiming_initialise",
    "norm_layer",
]
