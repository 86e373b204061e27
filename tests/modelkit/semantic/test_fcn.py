"""FCN (models.md 3.7): sizes, the bilinear kernel, skips that start as nothing, the published form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modelkit import ConfigError, create_model
from modelkit.layers.initialisation import bilinear_kernel
from modelkit.registry import build
from modelkit.semantic.fcn import bilinear_deconvolution

SMALL: dict[str, Any] = {"num_classes": 3, "backbone": {"width": 8}, "head": {"channels": 16}}
PUBLISHED = ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size_hw", [(97, 131), (33, 64), (1, 7)])
def test_the_published_nets_give_exactly_the_size_of_the_image(name: str, size_hw: tuple[int, int]) -> None:
    network = create_model(name, **SMALL).eval().network
    with torch.inference_mode():
        assert network(torch.randn(1, 3, *size_hw))["logits"].shape == (1, 3, *size_hw)


@pytest.mark.parametrize("side", [64, 97, 131])
def test_the_score_map_of_the_published_nets_has_the_caffe_nets_side(side: int) -> None:
    """Five pools that round up of H + 198 cells, minus the six that the 7x7 convolution takes."""
    model = create_model("fcn32s", **SMALL).eval()
    cells = side + 198
    for _ in range(5):
        cells = -(-cells // 2)
    with torch.inference_mode():
        features = model.network.backbone(model.network.head.prepare(torch.zeros(1, 3, side, side)))
        assert model.network.head.fc(features["c5"]).shape[-1] == cells - 6


@pytest.mark.parametrize(("stride", "grid"), [(32, (4, 5)), (16, (7, 9)), (8, (13, 17))])
def test_the_modern_net_scores_on_the_finest_map_it_uses(stride: int, grid: tuple[int, int]) -> None:
    config = {**SMALL, "head": {"channels": 16, "stride": stride}}
    network = create_model("fcn", **config).eval().network
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 97, 131))["logits"].shape == (1, 3, *grid)


def test_golden_rows_of_the_bilinear_kernel() -> None:
    kernel = bilinear_kernel(4)
    assert kernel[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert kernel[1].tolist() == [0.1875, 0.5625, 0.5625, 0.1875]
    assert torch.equal(kernel, kernel.flip(0))
    assert bilinear_kernel(3).tolist() == [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_enlarging_a_constant_gives_the_constant_inside_and_mixes_no_classes(stride: int) -> None:
    layer = bilinear_deconvolution(3, stride)
    constant = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None].expand(1, 3, 6, 6)
    inside = layer(constant)[..., stride:-stride, stride:-stride]
    assert (inside - constant[..., :1, :1]).abs().max() < 1e-6
    assert not layer.weight.requires_grad


def test_enlarging_by_two_is_interpolation_between_pixel_centres() -> None:
    """The golden row [0, .25, .75, 1] of [0, 1], seen by the fixed deconvolution in the interior."""
    layer = bilinear_deconvolution(1, 2)
    row = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    assert layer(row)[0, 0, 4, 3:7].tolist() == [0.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("name", ["fcn16s", "fcn8s"])
def test_a_fresh_finer_net_is_the_coarser_one_until_its_skips_learn(name: str) -> None:
    network = create_model(name, **SMALL).eval().network
    image = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        before = network(image)["logits"]
        for score in network.head.skip_scores.values():
            score.bias += torch.tensor([1.0, 2.0, 3.0])
        after = network(image)["logits"]
    added = (after - before)[0, :, 20, 28]
    assert torch.allclose(added, len(network.head.skip_scores) * torch.tensor([1.0, 2.0, 3.0]), atol=1e-4)


def test_at_once_scales_what_the_finer_maps_say() -> None:
    staged, at_once = (create_model(name, **SMALL).eval().network for name in ("fcn8s", "fcn8s_atonce"))
    for score in staged.head.skip_scores.values():
        torch.nn.init.normal_(score.weight)
    at_once.load_state_dict(staged.state_dict())
    image, nothing = torch.randn(1, 3, 40, 56), create_model("fcn8s", **SMALL).eval().network
    nothing.load_state_dict({k: v * ("skip" not in k) for k, v in staged.state_dict().items()})
    with torch.inference_mode():
        full, little, none = (net(image)["logits"] for net in (staged, at_once, nothing))
    assert 0 < (little - none).abs().max() < 0.02 * (full - none).abs().max()


def test_the_paper_sums_its_loss_over_pixels_and_the_modern_net_takes_the_mean() -> None:
    image = torch.rand(3, 64, 64)
    semantic = torch.zeros(64, 64, dtype=torch.int64)
    semantic[:32] = 255
    transform = {"min_size": 64, "max_size": 64, "padding": "none"}
    losses: dict[str, Tensor] = {}
    for name, reduction in (("mean", "mean"), ("sum", "sum")):
        torch.manual_seed(0)
        model = create_model("fcn8s", **SMALL, transform=transform, losses={"reduction": reduction}).eval()
        losses[name] = model([image], [{"semantic": semantic}])["loss_semantic"].detach()
    assert float(losses["sum"] / losses["mean"]) == pytest.approx(64 * 32, rel=1e-4)
    assert create_model("fcn8s", **SMALL).config["losses"]["reduction"] == "sum"
    assert create_model("fcn", **SMALL).config["losses"]["reduction"] == "mean"


def test_options_that_make_no_sense_are_refused() -> None:
    backbone = build("backbone", {"name": "vgg", "width": 8, "out": ["c4", "c5"]})
    with pytest.raises(ConfigError, match="8, 16 or 32"):
        build("dense_head", {"name": "fcn_head", "stride": 4}, backbone, 3)
    with pytest.raises(ConfigError, match="c3"):
        build("dense_head", {"name": "fcn_head", "channels": 8}, backbone, 3)
