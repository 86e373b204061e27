"""Semantic models: torchvision's numbers, the three ways back to source pixels, losses, segments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from modelkit import TargetError, create_model
from modelkit.importing import TABLES
from modelkit.rle import decode
from modelkit.semantic import SemanticMap, SemanticSegmentor
from modelkit.semantic.losses import pixel_loss
from modelkit.semantic.segmentor import stretch_nearest
from modelkit.transform import ImageTransform
from modelkit.weights import load_state
from tests.modelkit.builders import as_tensor, picture

AS_IS = {"min_size": 96, "max_size": 4000, "padding": "none", "size_divisible": 1}


class Painted(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"logits": self.logits.expand(len(batch), -1, -1, -1)}


def painted(logits: Tensor, **options: Any) -> SemanticSegmentor:
    transform = ImageTransform(min_size=8, max_size=16, padding="none", size_divisible=1).to_config()
    return SemanticSegmentor(Painted(logits), num_classes=logits.shape[1], transform=transform, **options)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_same_weights_give_torchvisions_label_maps_and_logits(name: str) -> None:
    torch.manual_seed(5)
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    builder = getattr(torchvision.models.segmentation, name)
    theirs = builder(weights=None, weights_backbone=None, num_classes=5, **options).eval()
    ours = create_model(name, num_classes=5, transform=AS_IS).eval()
    load_state(ours, TABLES[name].rename(theirs.state_dict()), name)
    batch, geometries = ours.transform.batch([as_tensor(picture(96, 131, 4))])
    assert batch.shape == (1, 3, 96, 131)
    with torch.inference_mode():
        expected = theirs(batch)["out"]
        raw = ours.dense(batch)
        upsampled = nn.functional.interpolate(raw["logits"], size=(96, 131), mode="bilinear", align_corners=False)
        assert (upsampled - expected).abs().max() <= 1e-5
        assert (ours.decode(raw, geometries)[0].label_map == expected[0].argmax(0)).float().mean() > 0.999


def test_frozen_golden_upsampling() -> None:
    """Bilinear up by two of [0, 1] without corner alignment: 0, .25, .75, 1, so the boundary lies in the middle."""
    logits = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]).repeat(1, 1, 2, 1)
    label_map = painted(logits, background=None).predict([torch.zeros(3, 8, 8)])[0].label_map
    assert label_map[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("upsample", ["network", "coarse", "source"])
def test_every_way_back_gives_the_source_size_and_the_same_plain_regions(upsample: str) -> None:
    logits = torch.full((1, 3, 2, 2), -4.0)
    logits[0, 1, :, 0] = 4
    logits[0, 2, :, 1] = 4
    found = painted(logits, upsample=upsample).predict([torch.zeros(3, 40, 40)])[0].finish()
    assert found.size_hw == (40, 40)
    assert found.labels.tolist() == [1, 2]
    assert found.boxes_xyxy.tolist() == [[0, 0, 20, 40], [20, 0, 40, 40]]
    assert not found.is_thing.any()
    expected = math.exp(4) / (math.exp(4) + 2 * math.exp(-4))
    assert found.scores.tolist() == pytest.approx([expected, expected], abs=1e-5)
    assert found.rles is not None
    left, right = (decode(rle, (40, 40)) for rle in found.rles)
    assert not (left & right).any()
    assert (left | right).all()


def test_the_background_makes_no_segment_unless_asked_for() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0] = 5
    assert len(painted(logits).predict([torch.zeros(3, 9, 9)])[0].finish()) == 0
    assert painted(logits, background=None).predict([torch.zeros(3, 9, 9)])[0].finish().labels.tolist() == [0]


def test_a_class_of_one_pixel_keeps_a_score() -> None:
    label_map = torch.zeros(16, 16, dtype=torch.uint8)
    label_map[0, 0] = 1
    probabilities = torch.tensor([0.75, 0.25])[:, None, None].repeat(1, 2, 2)
    found = SemanticMap((16, 16), label_map, probabilities, None).finish()
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == [0.75, 0.25]


def test_padding_never_reaches_the_label_map() -> None:
    logits = torch.full((1, 2, 4, 4), -4.0)
    logits[0, 1, :2, :2] = 4  # the quarter that holds the image
    logits[0, 0, 2:] = logits[0, 0, :, 2:] = 4
    model = painted(logits, background=None)
    batch = torch.zeros(1, 3, 16, 16)
    geometry = model.transform.batch([torch.zeros(3, 8, 8)], padded_hw=(16, 16))[1]
    for upsample in ("coarse", "network"):
        model.upsample = upsample
        found = model.decode(model.dense(batch), geometry)[0]
        assert found.finish().labels.tolist()[-1] == 1
        assert found.probabilities.shape == (2, 2, 2)


def test_stretching_takes_the_cell_under_each_pixel_centre() -> None:
    row = np.array([[1, 2, 3]])
    assert stretch_nearest(row, (1, 6)).tolist() == [[1, 1, 2, 2, 3, 3]]
    assert stretch_nearest(row, (2, 2)).tolist() == [[1, 3], [1, 3]]
    assert stretch_nearest(row, (1, 1)).tolist() == [[2]]


def test_loss_at_zero_logits_is_ln_c_and_ignored_pixels_count_for_nothing() -> None:
    wanted = torch.full((1, 8, 8), 255)
    assert float(pixel_loss(torch.zeros(1, 21, 2, 2), wanted)) == 0
    wanted[0, :4] = 3
    assert float(pixel_loss(torch.zeros(1, 21, 2, 2), wanted)) == pytest.approx(math.log(21), abs=1e-5)


def test_pixels_of_weight_0_give_no_gradient_but_still_count_in_the_mean() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    wanted = torch.zeros((1, 8, 8), dtype=torch.int64)
    wanted[:, 0] = 255
    weights = torch.ones((1, 8, 8))
    weights[:, 4:] = 0
    loss = pixel_loss(logits, wanted, weights)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 0] == 0).all() and (logits.grad[:, :, 4:] == 0).all()
    assert (logits.grad[:, :, 1:4] != 0).all()
    believed = nn.functional.cross_entropy(logits[:, :, 1:4], wanted[:, 1:4], reduction="sum")
    assert loss.item() == pytest.approx(believed.item() / 56, rel=1e-5)
    assert torch.equal(pixel_loss(logits, wanted, torch.ones(1, 8, 8)), pixel_loss(logits, wanted))


def test_of_a_model_with_dice_too_pixels_of_weight_0_give_no_gradient() -> None:
    model = painted(torch.zeros(1, 2, 8, 8), losses={"dice": 1.0})
    assert isinstance(model.network, Painted)
    model.network.logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    weights = torch.ones(8, 8)
    weights[4:] = 0
    target = {"semantic": torch.arange(64).reshape(8, 8) % 2, "semantic_weights": weights}
    losses = model([torch.zeros(3, 8, 8)], [target])
    for name in ("loss_semantic", "loss_dice"):
        (gradient,) = torch.autograd.grad(losses[name], model.network.logits, retain_graph=True)
        assert (gradient[:, :, 4:] == 0).all() and (gradient[:, :, :4] != 0).all(), name


@pytest.mark.parametrize(
    ("semantic", "message"),
    [
        (torch.zeros(8, 9, dtype=torch.int64), r"\(8, 8\)"),
        (torch.zeros(8, 8), "long"),
        (torch.full((8, 8), 7), r"0 \.\. 1"),
    ],
)
def test_malformed_targets_are_refused(semantic: Tensor, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        painted(torch.zeros(1, 2, 2, 2))([torch.zeros(3, 8, 8)], [{"semantic": semantic}])


@pytest.mark.parametrize("upsample", ["network", "coarse", "source"])
def test_probabilities_are_on_the_networks_own_size_whatever_the_way_back(upsample: str) -> None:
    """Half way between two cells both classes are as likely."""
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 4
    model = painted(logits, upsample=upsample)
    batch, geometries = model.transform.batch([torch.zeros(3, 16, 16)])
    [probabilities] = model.probabilities(model.dense(batch), geometries)
    confidence, class_map = probabilities.max(0)
    assert probabilities.shape == (2, *geometries[0].resized_hw)
    assert torch.allclose(probabilities.sum(0), torch.ones(geometries[0].resized_hw))
    middle = class_map.shape[1] // 2
    assert (class_map[:, :middle] == 0).all() and (class_map[:, middle:] == 1).all()
    assert confidence[0, 0] == pytest.approx(1 / (1 + math.exp(-4))) and confidence.min() >= 0.5
    assert confidence[0, middle] == pytest.approx(1 / (1 + math.exp(-1)))
