"""Backbones and necks. Importing this package registers them."""

from modelkit.layers.backbones import Backbone, MobileNetV3Backbone, ResNetBackbone, SlimResNetBackbone
from modelkit.layers.necks import FPN, PassThrough
from modelkit.layers.norms import norm_layer

__all__ = [
    "FPN",
    "Backbone",
    "MobileNetV3Backbone",
    "PassThrough",
    "ResNetBackbone",
    "SlimResNetBackbone",
    "norm_layer",
]
