"""Tensor names of the published YOLACT and YolactEdge checkpoints, listed from their papers' repositories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modelkit import create_model
from modelkit.importing import TABLES

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convolutions(*names: str) -> Iterator[str]:
    for name in names:
        yield from (f"{name}.weight", f"{name}.bias")


def block(convolution: str, norm: str) -> Iterator[str]:
    yield f"{convolution}.weight"
    yield from (f"{norm}.{each}" for each in _NORM)


def resnet(depths: tuple[int, ...]) -> Iterator[str]:
    yield from block("backbone.conv1", "backbone.bn1")
    for stage, depth in enumerate(depths):
        for k in range(depth):
            start = f"backbone.layers.{stage}.{k}"
            for part in (1, 2, 3):
                yield from block(f"{start}.conv{part}", f"{start}.bn{part}")
        first = f"backbone.layers.{stage}.0.downsample"
        yield from block(f"{first}.0", f"{first}.1")


def darknet() -> Iterator[str]:
    yield from block("backbone._preconv.0", "backbone._preconv.1")
    for stage, depth in enumerate((1, 2, 8, 8, 4)):
        yield from block(f"backbone.layers.{stage}.0.0", f"backbone.layers.{stage}.0.1")
        for k in range(1, depth + 1):
            for part in (1, 2):
                start = f"backbone.layers.{stage}.{k}.conv{part}"
                yield from block(f"{start}.0", f"{start}.1")


def pyramid(laterals: str, outputs: str) -> Iterator[str]:
    yield from convolutions(*(f"{laterals}.lat_layers.{k}" for k in range(3)))
    yield from convolutions(*(f"{outputs}.pred_layers.{k}" for k in range(3)))
    yield from convolutions(*(f"{outputs}.downsample_layers.{k}" for k in range(2)))


def head() -> Iterator[str]:
    layers = ("upfeature.0", "bbox_layer", "conf_layer", "mask_layer")
    yield from convolutions(*(f"proto_net.{k}" for k in (0, 2, 4, 8, 10)))
    yield from convolutions(*(f"prediction_layers.0.{layer}" for layer in layers), "semantic_seg_conv")


def motion() -> Iterator[str]:
    yield from convolutions("flow_net_pre_convs.convs.0.0", "spa.refine_convs.0.0", "spa.refine_convs.1.0")
    yield from convolutions(*(f"flow_net.conv{stage}.{k}.0" for stage in (1, 2, 3) for k in (0, 1)))
    for level in (1, 2, 3):
        yield f"flow_net.pred{level}.conv.weight"
        yield from convolutions(f"flow_net.pred{level}.scale", f"flow_net.pred{level}.bias")
    yield from (f"flow_net.{name}.weight" for name in ("upfeat3", "upflow3", "upfeat2", "upflow2"))


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
CHECKPOINTS = {
    "yolact": [*resnet(R101), *pyramid("fpn", "fpn"), *head()],
    "yolact_resnet50": [*resnet(R50), *pyramid("fpn", "fpn"), *head()],
    "yolact_darknet53": [*darknet(), *pyramid("fpn", "fpn"), *head()],
    "yolact_edge": [*resnet(R101), *pyramid("fpn_phase_1", "fpn_phase_2"), *head(), *motion()],
    "yolact_edge_resnet50": [*resnet(R50), *pyramid("fpn_phase_1", "fpn_phase_2"), *head(), *motion()],
}
# Older files hold these too; nothing of ours answers to them.
_LEFT_BEHIND = ["backbone.layer1.0.conv1.weight", "fpn.downsample_layers.2.weight", "fpn.downsample_layers.4.bias"]


def numbered(names: list[str]) -> dict[str, Tensor]:
    return {name: torch.tensor(k) for k, name in enumerate(names)}


@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_every_tensor_of_a_published_checkpoint_has_its_place_and_no_place_stays_empty(name: str) -> None:
    table = TABLES[name]
    with torch.device("meta"):
        model: Any = create_model(name)
    renamed = table.rename(numbered([*CHECKPOINTS[name], *_LEFT_BEHIND]))
    assert renamed.keys() == model.state_dict().keys()


def test_the_pyramid_is_numbered_from_the_coarsest_map() -> None:
    renamed = TABLES["yolact"].rename(numbered(["fpn.lat_layers.0.weight", "fpn.pred_layers.2.bias"]))
    assert list(renamed) == ["neck.laterals.p5.weight", "neck.outputs.p3.bias"]
    renamed = TABLES["yolact_edge"].rename(numbered(["fpn_phase_1.lat_layers.2.weight", "spa.refine_convs.1.0.bias"]))
    assert list(renamed) == ["neck.laterals.p3.weight", "feature_transform.refine.p5.0.bias"]


def test_classes_and_prototypes_are_read_off_the_tensors() -> None:
    state = {
        "prediction_layers.0.bbox_layer.bias": torch.zeros(3 * 4),
        "prediction_layers.0.conf_layer.bias": torch.zeros(3 * 21),
        "prediction_layers.0.mask_layer.bias": torch.zeros(3 * 16),
    }
    assert TABLES["yolact"].infer(state) == {"num_classes": 21, "head": {"num_prototypes": 16}}
    assert TABLES["yolact"].infer({}) == {}
