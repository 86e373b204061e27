"""Parameter counts of every system that the literature or a reference implementation gives a number for.

One row per system; built on the meta device, so nothing is allocated. An equal count does not prove an equal
computation: weight-copy parity tests do that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modelkit.layers import FPN, Backbone, ResNetBackbone
from modelkit.panoptic import DeformableSemanticHead, RaftFlow, SemanticFPNHead, TemporalFusion, TrackHead
from modelkit.registry import count_parameters
from modelkit.transform import ImageTransform

# registered name, options, published number
COUNTS: list[tuple[str, dict[str, Any], int]] = [
    # torchvision's tables
    ("mask_rcnn", {}, 44_454_513),
    ("maskrcnn_resnet50_fpn", {}, 44_454_513),
    ("maskrcnn_resnet50_fpn", {"backbone": {"norm": "frozen_batch"}}, 44_401_393),
    ("maskrcnn_resnet50_fpn_v2", {}, 46_359_409),
    ("fasterrcnn_resnet50_fpn", {}, 41_808_406),
    ("fasterrcnn_resnet50_fpn_v2", {}, 43_712_278),
    ("keypointrcnn_resnet50_fpn", {}, 59_190_378),
    ("keypointrcnn_resnet50_fpn", {"backbone": {"norm": "frozen_batch"}}, 59_137_258),
    # Faster R-CNN of two classes, and detectron2's DensePose: convolutions, predictor, decoder
    ("densepose_rcnn", {}, 41_352_281 + 17_698_816 + 630_861 + 4_196_352),
    (
        "densepose_rcnn",
        {"heads": {"surface": {"coarse_channels": 15, "decoder": None}}},
        41_352_281 + 17_698_816 + 737_370,
    ),
    ("lraspp_mobilenet_v3_large", {}, 3_221_538),
    ("deeplabv3_mobilenet_v3_large", {}, 11_029_328),
    ("deeplabv3_resnet50", {}, 42_004_074),
    ("deeplabv3_resnet50", {"aux_loss": False}, 39_638_869),
    ("deeplabv3_resnet101", {}, 60_996_202),
    ("fcn_resnet50", {}, 35_322_218),
    ("fcn_resnet50", {"aux_loss": False}, 32_957_013),
    ("fcn_resnet101", {}, 54_314_346),
    # wkentaro/pytorch-fcn
    ("fcn32s", {}, 136_152_917),
    ("fcn16s", {}, 134_815_994),
    ("fcn8s", {}, 134_489_759),
    ("fcn8s_atonce", {}, 134_489_759),
    # the paper's U-Net, then milesial/Pytorch-UNet
    ("unet_original", {}, 31_030_658),
    ("unet", {"num_classes": 1}, 31_037_633),
    ("unet", {"num_classes": 2}, 31_037_698),
    ("unet_bilinear", {"num_classes": 1}, 17_262_977),
    ("unet_bilinear", {"num_classes": 2}, 17_263_042),
    # VainF/DeepLabV3Plus-Pytorch
    ("deeplabv3plus_resnet50", {}, 39_761_845),
    ("deeplabv3plus_resnet50", {"backbone": {"dilate_last": 2}}, 39_761_845),
    ("deeplabv3plus_resnet101", {}, 58_753_973),
    ("deeplabv3plus_mobilenet_v2", {}, 5_225_717),
    # biubug6/Pytorch_Retinaface
    ("retinaface", {}, 426_608),
    ("retinaface_resnet50", {}, 27_293_600),
    # xingyizhou/CenterNet, princeton-vl/CornerNet and Duankaiwen/CenterNet
    ("centernet", {}, 14_437_349),
    ("centernet_resdcn101", {}, 49_673_189),
    ("centernet_resnet18", {}, 15_820_372),
    ("centernet_resnet101", {}, 53_435_476),
    ("cornernet", {}, 201_035_212),
    ("centernet_triplet", {}, 210_062_960),
    ("centernet_triplet52", {}, 104_844_152),
    # microsoft/human-pose-estimation.pytorch, ResNet-50; ResNet-18 without its classifier, and a layer of 2 K numbers
    ("heatmap_landmarker", {}, 33_999_697),
    ("coordinate_landmarker", {"num_keypoints": 5}, 11_176_512 + 512 * 10 + 10),
    # what princeton-vl/pytorch_stacked_hourglass uses of its parameters
    ("hourglass", {"stacks": 1}, 3_426_448),
    ("hourglass", {}, 6_570_400),
    ("hourglass", {"stacks": 8}, 25_434_112),
]


@pytest.mark.parametrize(("name", "options", "expected"), COUNTS, ids=[f"{name}-{n}" for name, _, n in COUNTS])
def test_parameter_counts_are_the_published_ones(name: str, options: dict[str, Any], expected: int) -> None:
    assert count_parameters(name, **options) == expected


# what it is, how it is made for a ResNet-50 FPN, published number
PARTS: list[tuple[str, Callable[[Backbone], nn.Module], int]] = [
    ("panoptic FPN, COCO", lambda neck: SemanticFPNHead(neck, 54), 1_630_774),
    ("panoptic FPN, Cityscapes", lambda neck: SemanticFPNHead(neck, 19), 1_626_259),
    ("UPSNet, COCO", lambda neck: DeformableSemanticHead(neck, 133), 1_136_438 + 68_229),
    ("UPSNet, Cityscapes", lambda neck: DeformableSemanticHead(neck, 19, channels=(128, 128)), 504_868 + 9_747),
    ("VPSNet, semantic", lambda neck: DeformableSemanticHead(neck, 19, norm="group"), 1_147_209),
    ("VPSNet, track", lambda neck: TrackHead(neck, 9), 13_895_680),
    ("VPSNet, attention", lambda neck: TemporalFusion(neck).attention, 2_885_888),
    ("VPSNet, flow's rest", lambda neck: TemporalFusion(neck).refine_flow, 251_298),
    ("VPSNet, refinement", lambda neck: TemporalFusion(neck).refine, 590_080),
    ("RAFT, small", lambda neck: RaftFlow(ImageTransform(), size="small"), 990_162),
    ("RAFT, large", lambda neck: RaftFlow(ImageTransform(), size="large"), 5_257_536),
]


@pytest.mark.parametrize(("make", "expected"), [part[1:] for part in PARTS], ids=[part[0] for part in PARTS])
def test_parts_have_the_published_counts(make: Callable[[Backbone], nn.Module], expected: int) -> None:
    with torch.device("meta"):
        part = make(FPN(ResNetBackbone(depth=50)))
    assert sum(parameter.numel() for parameter in part.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "num_things", "beside"),
    [
        ("panoptic_fpn", 80, 1_630_774),
        ("upsnet", 80, 1_136_438 + 68_229),
        ("vpsnet", 8, 1_147_209 + 13_895_680 + 2_885_888 + 251_298 + 590_080),
    ],
)
def test_panoptic_models_are_mask_rcnn_and_their_parts(name: str, num_things: int, beside: int) -> None:
    assert count_parameters(name) == count_parameters("mask_rcnn", num_classes=num_things + 1) + beside
