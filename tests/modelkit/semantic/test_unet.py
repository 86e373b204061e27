"""U-Net (models.md 3.8): odd sizes, the paper's 572 to 388, mirrored borders, one class through a sigmoid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelkit import TargetError, create_model
from modelkit.semantic.unet import mirror
from tests.modelkit.builders import as_tensor, picture, rectangles

SMALL: dict[str, Any] = {"num_classes": 2, "backbone": {"widths": [4, 4, 8, 8, 8]}}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["unet", "unet_bilinear", "unet_original"])
@pytest.mark.parametrize("size_hw", [(16, 16), (17, 31), (55, 100), (97, 131)])
def test_any_size_of_16_or_more_comes_back_as_it_was(name: str, size_hw: tuple[int, int]) -> None:
    network = create_model(name, **SMALL).eval().network
    with torch.inference_mode():
        assert network(torch.randn(1, 3, *size_hw))["logits"].shape == (1, 2, *size_hw)


def test_seven_is_pooled_to_three_and_doubled_to_six_and_still_meets_its_skip() -> None:
    network = create_model("unet", num_classes=2, backbone={"widths": [4, 4]}).eval().network
    with torch.inference_mode():
        features = network.backbone(torch.randn(1, 3, 7, 7))
        assert [feature.shape[-1] for feature in features.values()] == [7, 3]
        assert network.head.ups[0](features["c1"]).shape[-1] == 6
        assert network.head(features, (7, 7)).shape[-1] == 7


def test_the_papers_tile_of_572_gives_388() -> None:
    network = create_model("unet_original", **SMALL).eval().network
    with torch.inference_mode():
        features = network.backbone(torch.randn(1, 3, 572, 572))
        assert [feature.shape[-1] for feature in features.values()] == [568, 280, 136, 64, 28]
        sides: list[int] = []
        network.head.score.register_forward_hook(lambda *given: sides.append(given[2].shape[-1]))
        assert network.head(features, (388, 388)).shape == (1, 2, 388, 388)
        assert sides == [388]
        assert network.head.prepare(torch.zeros(1, 3, 388, 388)).shape[-1] == 572


def test_overlapping_tiles_give_what_the_whole_image_gives() -> None:
    """The paper's reason for valid convolutions: inside, the logits depend on no border, so tiles fit seamlessly."""
    network = create_model("unet_original", num_classes=2, backbone={"widths": [4, 8, 8]}).eval().network
    image = torch.randn(1, 3, 120, 120)
    with torch.inference_mode():
        whole, part = network(image)["logits"], network(image[..., 8:112, 8:112])["logits"]
    assert (whole[..., 48:72, 48:72] - part[..., 40:64, 40:64]).abs().max() < 1e-5


def test_mirroring_repeats_no_border_pixel_and_goes_back_and_forth() -> None:
    row = torch.arange(3.0).expand(1, 1, 1, 3)
    assert mirror(row, (0, 0), (5, 4))[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert torch.equal(mirror(row, (1, 1), (0, 0)), row.expand(1, 1, 3, 3))
    image = torch.randn(1, 2, 6, 7)
    assert torch.equal(mirror(image, (2, 3), (4, 1)), torch.nn.functional.pad(image, (4, 1, 2, 3), mode="reflect"))


def test_one_class_is_told_from_the_background_by_a_sigmoid() -> None:
    transform = {"min_size": 64, "max_size": 64, "padding": "none", "size_divisible": 16}
    model = create_model(
        "unet", num_classes=1, backbone={"widths": [4, 4]}, transform=transform, upsample="coarse"
    ).eval()
    image = as_tensor(picture(64, 64))
    target = rectangles(64, 64, [[8, 8, 40, 40]], [1])
    with torch.no_grad():
        batch, _ = model.transform.batch([image])
        logit = model.network(batch)["logits"][0, 0]
        losses = model([image], [target])
    truth = target["semantic"].float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, truth)
    assert float(losses["loss_semantic"]) == pytest.approx(float(expected), rel=1e-4)
    foreground = logit.sigmoid()
    dice = 1 - (2 * (foreground * truth).sum() + 1e-6) / (foreground.sum() + truth.sum() + 1e-6)
    assert float(losses["loss_dice"]) == pytest.approx(float(dice), rel=1e-4)
    found = model.predict([image])[0]
    assert torch.equal(found.label_map.bool(), logit > 0)
    assert set(found.finish().labels.tolist()) <= {1}
    with pytest.raises(TargetError, match=r"0 \.\. 1"):
        model([image], [rectangles(64, 64, [[8, 8, 40, 40]], [2])])


def test_the_original_sees_grey_and_wants_masks_for_its_borders() -> None:
    model = create_model("unet_original", **SMALL, transform={"min_size": 32, "max_size": 32}).eval()
    image = torch.rand(3, 32, 32)
    assert model.network.backbone.levels[0][0].in_channels == 1
    with pytest.raises(TargetError, match="masks"):
        model([image], [{"semantic": torch.zeros(32, 32, dtype=torch.int64)}])
    plain = rectangles(32, 32, [[2, 2, 12, 30]], [1])
    close = rectangles(32, 32, [[2, 2, 12, 30], [14, 2, 30, 30]], [1, 1])
    assert set(model([image], [plain])) == {"loss_semantic"}
    with torch.no_grad():
        weighted = model([image], [close])["loss_semantic"]
        model.losses = type(model.losses)()
        assert weighted > 1.2 * model([image], [close])["loss_semantic"]
