"""Maps come out under their names, with the channels and strides that are declared, for odd sizes too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from modelkit import ConfigError
from modelkit.layers import FPN, norm_layer
from modelkit.registry import build

BACKBONES: list[dict[str, Any]] = [
    {"name": "resnet", "depth": 18},
    {"name": "resnet", "depth": 34, "out": ["c3", "c5"], "norm": "group"},
    {"name": "resnet", "depth": 50, "dilate_last": 2},
    {"name": "mobilenet_v3", "size": "small", "out": ["c1", "c2", "c3", "c4", "c5"]},
    {"name": "mobilenet_v3"},
    {"name": "mobilenet_v2", "width": 0.25, "out": ["c1", "c2", "c3", "c4", "c5"]},
    {"name": "mobilenet_v2", "width": 0.25, "dilate_last": 1},
    {"name": "mobilenet_v2", "width": 0.25, "dilate_last": 2},
    {"name": "vgg", "width": 8, "out": ["c1", "c2", "c3", "c4", "c5"]},
    {"name": "vgg", "depth": 11, "width": 8, "batch_norm": True},
    {"name": "slim_resnet"},
    {"name": "slim_resnet", "widths": [8, 12], "depths": [2, 1], "stem_width": 5, "norm": "group"},
    {"name": "slim_resnet", "out": ["c2", "c4"]},
]


@pytest.mark.parametrize("config", BACKBONES, ids=str)
@pytest.mark.parametrize("size_hw", [(64, 96), (65, 33)])
def test_maps_are_what_was_declared(config: dict[str, Any], size_hw: tuple[int, int]) -> None:
    backbone = build("backbone", config).eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, *size_hw))
    assert list(features) == list(backbone.out_channels) == list(backbone.strides)
    for name, feature in features.items():
        stride = backbone.strides[name]
        assert feature.shape[1] == backbone.out_channels[name]
        assert feature.shape[2:] == tuple(math.ceil(side / stride) for side in size_hw), name


@pytest.mark.parametrize(("extra", "names"), [(None, "2345"), ("pool", "23456"), ("p6p7", "234567")])
def test_the_pyramid_renames_and_extends(extra: str | None, names: str) -> None:
    backbone = build("backbone", {"name": "slim_resnet", "widths": [4, 4, 4, 4]})
    neck = FPN(backbone, channels=8, extra=extra).eval()
    with torch.inference_mode():
        features = neck(backbone(torch.zeros(1, 3, 128, 128)))
    assert list(features) == [f"p{k}" for k in names] == list(neck.strides)
    assert all(neck.strides[f"p{k}"] == 2 ** int(k) for k in names)
    assert {feature.shape[1] for feature in features.values()} == {8} == set(neck.out_channels.values())
    assert all(features[name].shape[2] == 128 // stride for name, stride in neck.strides.items())


def test_dilation_keeps_the_finer_stride_and_the_neck_knows() -> None:
    backbone = build("backbone", {"name": "resnet", "dilate_last": 1})
    assert backbone.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 16}
    assert FPN(backbone, channels=8).strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 16, "p6": 32}


def test_a_model_without_a_neck_passes_the_maps_through() -> None:
    backbone = build("backbone", {"name": "slim_resnet", "out": ["c3"]}).eval()
    neck = build("neck", {"name": "none"}, backbone)
    features = backbone(torch.zeros(1, 3, 32, 32))
    assert neck(features)["p3"] is features["c3"]
    assert (neck.strides, neck.out_channels) == ({"p3": 8}, {"p3": 64})


@pytest.mark.parametrize(("trainable", "frozen"), [(5, 0), (3, 2), (0, 5)])
def test_layers_freeze_from_the_front(trainable: int, frozen: int) -> None:
    body = build("backbone", {"name": "resnet", "depth": 18, "trainable_layers": trainable}).body
    parts = [
        [*body.conv1.parameters(), *body.bn1.parameters()],
        *(getattr(body, f"layer{k}").parameters() for k in (1, 2, 3, 4)),
    ]
    assert [any(p.requires_grad for p in part) for part in parts] == [False] * frozen + [True] * (5 - frozen)


def test_norms_by_name() -> None:
    kinds = {"batch": nn.BatchNorm2d, "frozen_batch": FrozenBatchNorm2d, "group": nn.GroupNorm}
    for name, kind in kinds.items():
        make = norm_layer(name, eps=0.5)
        assert make is not None
        layer = make(48)
        assert isinstance(layer, kind)
        assert layer.eps == 0.5
    assert norm_layer(None) is None
    group = norm_layer("group")
    assert group is not None
    assert group(48).num_groups == 16
    with pytest.raises(ConfigError, match="layer"):
        norm_layer("layer")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("backbone", {"name": "resnet", "depth": 18, "dilate_last": 1}),
        ("backbone", {"name": "resnet", "trainable_layers": 6}),
        ("backbone", {"name": "mobilenet_v3", "size": "huge"}),
        ("backbone", {"name": "slim_resnet", "widths": [8], "depths": [1, 1]}),
        ("backbone", {"name": "slim_resnet", "out": ["c7"]}),
        ("backbone", {"name": "slim_resnet", "norm": None}),
    ],
)
def test_configs_that_make_no_sense_are_refused(kind: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(kind, config)


def test_an_unknown_extra_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="extra"):
        build("neck", {"name": "fpn", "extra": "p9"}, build("backbone", {"name": "slim_resnet"}))


@pytest.mark.parametrize("dilate_last", [1, 2])
def test_a_dilated_mobilenet_sees_at_every_second_place_what_the_strided_one_sees(dilate_last: int) -> None:
    """The same weights: taking strides out and dilating what follows only adds places in between (Chen et al. 2017)."""
    torch.manual_seed(0)
    strided = build("backbone", {"name": "mobilenet_v2", "width": 0.5, "out": ["c5"]}).eval()
    dilated = build(
        "backbone", {"name": "mobilenet_v2", "width": 0.5, "out": ["c5"], "dilate_last": dilate_last}
    ).eval()
    dilated.load_state_dict(strided.state_dict())
    step = 2**dilate_last
    with torch.inference_mode():
        image = torch.randn(1, 3, 224, 224)
        sparse, full = strided(image)["c5"], dilated(image)["c5"]
    assert full.shape[-1] == step * sparse.shape[-1]
    centre = full[..., ::step, ::step][..., 3:4, 3:4] - sparse[..., 3:4, 3:4]
    assert centre.abs().max() < 1e-5 * sparse.abs().max().clamp(min=1)


def test_zeros_around_a_block_are_not_zeros_around_its_middle() -> None:
    """VainF's padding gives other values at the border and the same ones far from it."""
    torch.manual_seed(0)
    plain = build("backbone", {"name": "mobilenet_v2", "out": ["c2"]}).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    padded = build("backbone", {"name": "mobilenet_v2", "out": ["c2"], "padding": "block"}).eval()
    padded.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        image = torch.randn(1, 3, 66, 66)
        # The stem without padding is the padded one a pixel further on.
        wanted, found = plain(image)["c2"], padded(torch.nn.functional.pad(image, (1, 1, 1, 1)))["c2"]
    assert wanted.shape == found.shape
    difference = (wanted - found).abs().amax((0, 1))
    assert difference[4:-4, 4:-4].max() < 1e-5
    assert difference[0].max() > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        {"name": "vgg", "depth": 12},
        {"name": "mobilenet_v2", "dilate_last": 3},
        {"name": "mobilenet_v2", "padding": "none"},
        {"name": "unet_encoder", "widths": [8]},
        {"name": "unet_encoder", "padding": "full"},
        {"name": "unet_encoder", "in_channels": 2},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=config["name"]):
        build("backbone", config)
