"""Parameter counts of the one-stage models: those of the authors' own code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelkit import create_model
from modelkit.registry import count_parameters


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolact", 50_157_071),
        ("yolact_resnet50", 31_164_943),
        ("yolact_resnet50_pascal", 30_734_623),
        ("yolact_im400", 50_157_071),
        ("yolact_im700", 50_157_071),
        ("retinanet_resnet50_fpn", 34_068_119),
        ("fcos_resnet50_fpn", 32_322_720),
        ("retinanet_resnet50_fpn_v2", 38_198_935),
        ("ssd300_vgg16", 35_641_826),
        ("ssdlite320_mobilenet_v3_large", 3_440_060),
    ],
)
def test_counts_are_those_of_the_reference(name: str, expected: int) -> None:
    assert count_parameters(name) == expected


def test_the_parts_of_yolact_have_the_counts_of_the_reference() -> None:
    with torch.device("meta"):
        model = create_model("yolact")
    head = model.head
    parts = {
        "backbone": (model.backbone, 42_500_160),
        "pyramid": (model.neck, 3_868_672),
        "prototypes": (head.prototypes, 2_368_544),
        "prediction": (nn.ModuleList([head.shared, head.deltas, head.logits, head.coefficients]), 1_399_135),
        "semantic": (head.semantic, 20_560),
    }
    for name, (module, expected) in parts.items():
        assert sum(p.numel() for p in module.parameters()) == expected, name


@pytest.mark.parametrize(("edge", "plain"), [("yolact_edge", "yolact"), ("yolact_edge_resnet50", "yolact_resnet50")])
def test_yolact_edge_adds_pre_convolution_flow_and_refinement(edge: str, plain: str) -> None:
    assert count_parameters(edge, num_classes=81) - count_parameters(plain) == 4_511_184
    with torch.device("meta"):
        transform = create_model(edge).feature_transform
    parts = [(transform.reduce, 147_520), (transform.flow_net, 2_003_856), (transform.refine, 2_359_808)]
    assert all(sum(p.numel() for p in module.parameters()) == expected for module, expected in parts)
