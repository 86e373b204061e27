"""DeepLabV3+ (models.md 3.9): output strides, dilation, the image-pooling branch, decoder forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modelkit import ConfigError, create_model
from modelkit.registry import build, count_parameters

SLIM = {"name": "slim_resnet", "widths": [8, 8, 16], "depths": [1, 1, 1]}
SMALL: dict[str, Any] = {"num_classes": 3, "backbone": SLIM, "head": {"channels": 8, "low_channels": 4}}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backbone", [{"name": "resnet", "depth": 50}, {"name": "mobilenet_v2"}], ids=str)
def test_output_strides_8_and_16_agree_in_shape_and_differ_in_what_aspp_sees(backbone: dict[str, Any]) -> None:
    shapes, coarse, rates = [], [], []
    for dilate_last in (1, 2):
        config = {**SMALL, "backbone": {**backbone, "out": ["c2", "c5"], "dilate_last": dilate_last}}
        network = create_model("deeplabv3plus", **config).eval().network
        with torch.inference_mode():
            features = network.backbone(torch.randn(1, 3, 64, 96))
            shapes.append(network.head(features, (64, 96)).shape)
        coarse.append(tuple(features["c5"].shape[-2:]))
        rates.append([branch[0].dilation[0] for branch in list(network.head.aspp.convs)[1:4]])
    assert shapes == [(1, 3, 16, 24)] * 2
    assert coarse == [(4, 6), (8, 12)]
    assert rates == [[6, 12, 18], [12, 24, 36]]


@pytest.mark.parametrize("size_hw", [(64, 64), (97, 131), (33, 40)])
def test_labels_have_the_size_of_the_image(size_hw: tuple[int, int]) -> None:
    transform = {"min_size": min(size_hw), "max_size": max(size_hw), "padding": "none"}
    model = create_model("deeplabv3plus", **SMALL, transform=transform).eval()
    batch, _ = model.transform.batch([torch.rand(3, *size_hw)])
    with torch.inference_mode():
        assert model.dense(batch)["label_map"].shape == (1, *size_hw)


def test_a_dilated_convolution_is_one_with_zeros_between_its_weights() -> None:
    weight, x = torch.randn(2, 3, 3, 3), torch.randn(1, 3, 11, 13)
    spread = torch.zeros(2, 3, 7, 7)
    spread[..., ::3, ::3] = weight
    assert torch.allclose(F.conv2d(x, weight, padding=3, dilation=3), F.conv2d(x, spread, padding=3), atol=1e-5)
    body = build("backbone", {"name": "resnet", "depth": 50, "dilate_last": 2}).body
    assert body.layer4[-1].conv2.dilation == (4, 4)
    assert body.layer4[0].conv2.dilation == (2, 2)
    assert body.layer3[-1].conv2.dilation == (2, 2)


def test_image_pooling_works_alone_in_evaluation_and_needs_two_images_in_training() -> None:
    model = create_model("deeplabv3plus", **SMALL).eval()
    network, image = model.network, torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert network(image)["logits"].isfinite().all()
    network.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(image)
    network(image.expand(2, -1, -1, -1))


def test_image_pooling_carries_the_whole_image_to_every_place() -> None:
    """Other branches are shut, so a change in one corner reaches the opposite one by the pool alone."""
    head = create_model("deeplabv3plus", **SMALL).eval().network.head
    with torch.no_grad():
        for branch in list(head.aspp.convs)[:4]:
            branch[0].weight.zero_()
    x = torch.randn(1, 16, 8, 8)
    y = x.clone()
    y[..., 0, 0] += 5
    with torch.inference_mode():
        assert ((head.aspp(x) - head.aspp(y))[..., 7, 7]).abs().max() > 1e-4


def test_the_decoder_of_the_paper_has_one_convolution_more() -> None:
    one, two = (count_parameters("deeplabv3plus", head={"decoder_convs": n}) for n in (1, 2))
    assert two - one == 256 * 256 * 9 + 2 * 256


def test_separable_convolutions_replace_every_3x3_of_the_head_and_nothing_else() -> None:
    head = create_model("deeplabv3plus", **{**SMALL, "head": {**SMALL["head"], "separable": True}}).network.head
    large = [module for module in head.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(large) == 4
    assert all(module.groups == module.in_channels for module in large)
    assert [module.dilation[0] for module in large] == [6, 12, 18, 1]


def test_options_that_make_no_sense_are_refused() -> None:
    backbone = build("backbone", SLIM)
    for options in ({"decoder_convs": 3}, {"low": "c1"}):
        with pytest.raises(ConfigError, match="deeplabv3plus_head"):
            build("dense_head", {"name": "deeplabv3plus_head", **options}, backbone, 3)
