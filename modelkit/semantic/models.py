"""Registered semantic models on our own skeleton: DeepLabV3+, FCN, U-Net, and names for their common sizes.

All are one composition, a backbone and a head; what differs is written down below as defaults.
"""

from __future__ import annotations

from modelkit.registry import Config, register_model, register_variant
from modelkit.semantic import deeplab, fcn, unet  # noqa: F401  (their parts register themselves)
from modelkit.semantic.composition import BackboneAndHead
from modelkit.semantic.losses import LossConfig
from modelkit.semantic.segmentor import SemanticSegmentor, Upsample
from modelkit.transform import ImageTransform

_PARTS = {"backbone": "backbone", "head": "dense_head"}
_RESNET50 = {"name": "resnet", "depth": 50, "out": ["c2", "c5"], "dilate_last": 1}
_DEEPLAB = {"name": "deeplabv3plus_head"}
_CROSS_ENTROPY = LossConfig().to_config()
# ASPP pools over the whole image, which padding would disturb; the others only lose features near the padding.
_STRETCH = ImageTransform(min_size=512, max_size=1024, size_divisible=1, padding="stretch", antialias=True).to_config()
_PAD = {"padding": "pad", "size_divisible": 32}


@register_model("deeplabv3plus", architecture="SemanticSegmentor", kind="semantic", parts=_PARTS)
def segmentor(
    *,
    num_classes: int = 21,
    backbone: Config = _RESNET50,
    head: Config = _DEEPLAB,
    losses: Config = _CROSS_ENTROPY,
    transform: Config = _STRETCH,
    upsample: Upsample = "network",
    background: int | None = 0,
) -> SemanticSegmentor:
    """Any backbone with any semantic head; by default DeepLabV3+ (Chen et al. 2018), ResNet-50 at output stride 16.

    Output stride 8 is ``backbone={"dilate_last": 2}``.
    """
    return SemanticSegmentor(
        BackboneAndHead(backbone, head, num_classes),
        num_classes=num_classes,
        transform=transform,
        losses=losses,
        upsample=upsample,
        background=background,
    )


_RESNET101 = {**_RESNET50, "depth": 101}
_MOBILENET_V2 = {"name": "mobilenet_v2", "out": ["c2", "c5"], "dilate_last": 1}

register_variant("deeplabv3plus_resnet50", "deeplabv3plus")
register_variant("deeplabv3plus_resnet101", "deeplabv3plus", backbone=_RESNET101)
register_variant("deeplabv3plus_mobilenet_v2", "deeplabv3plus", backbone=_MOBILENET_V2)

# FCN (Long et al. 2015). The plain name is the modern form of FCN-8s; the numbered nets are as published, trained on a
# sum over pixels.
_VGG = {"name": "vgg"}
_SUM = {"reduction": "sum"}


def _published(stride: int, at_once: bool = False) -> dict[str, object]:
    return {"name": "fcn_head", "stride": stride, "modern": False, "at_once": at_once}


register_variant("fcn", "deeplabv3plus", backbone=_VGG, head={"name": "fcn_head"}, transform=_PAD)
register_variant("fcn32s", "fcn", head=_published(32), losses=_SUM)
register_variant("fcn16s", "fcn", head=_published(16), losses=_SUM)
register_variant("fcn8s", "fcn", head=_published(8), losses=_SUM)
register_variant("fcn8s_atonce", "fcn", head=_published(8, at_once=True), losses=_SUM)

# U-Net (Ronneberger et al. 2015): as it is used today, and the original for grey images of cells.
register_variant(
    "unet",
    "deeplabv3plus",
    backbone={"name": "unet_encoder"},
    head={"name": "unet_decoder"},
    losses={"dice": 1.0},
    transform=_PAD,
)
register_variant(
    "unet_bilinear",
    "unet",
    backbone={"name": "unet_encoder", "widths": [64, 128, 256, 512, 512]},
    head={"name": "unet_decoder", "bilinear": True},
)
register_variant(
    "unet_original",
    "unet",
    num_classes=2,
    backbone={"name": "unet_encoder", "norm": None, "padding": "valid", "dropout": 0.5, "in_channels": 1},
    head={"name": "unet_decoder", "norm": None},
    losses={"dice": 0.0, "border": 10.0},
)
