"""DensePose R-CNN: its head is detectron2's; targets and losses in hand cases; digits that it learns by heart."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit import ConfigError, TargetError, create_model
from modelkit.augmentation import Sample, cutmix, warp
from modelkit.augmentation.geometry import horizontal_flip, translation
from modelkit.carriers.fields import Resize
from modelkit.carriers.landmarks import Landmarks, Surface
from modelkit.carriers.targets import cover_target, resize_target
from modelkit.detection.surface_charts import (
    COARSE,
    PARTS,
    U,
    V,
    coarse_loss,
    coarse_targets,
    paste,
    point_losses,
    values_at,
)
from modelkit.detection.surfaces import DensePoseRCNN, SurfaceHead
from modelkit.digitscape import Digitscape, DigitscapeError, Scene, SceneStyle
from modelkit.metrics import geodesic_point_similarity
from modelkit.registry import build
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.student import weighted_losses
from tests.modelkit.builders import as_tensor, picture, rectangles, small_densepose_rcnn, surface_points_in

BOX = torch.tensor([[10.0, 20, 38, 76]])


def charts(regions: int = 1, parts: int = 3, cells: int = 28) -> dict[str, Tensor]:
    """All zero."""
    counts = {COARSE: 2, PARTS: parts + 1, U: parts + 1, V: parts + 1}
    return {name: torch.zeros((regions, count, cells, cells)) for name, count in counts.items()}


def labelled(x: float, y: float, part: float = 1, u: float = 0.0, v: float = 0.0) -> Tensor:
    return torch.tensor([[[x, y, part, u, v]]])


# ---- the head is detectron2's (projects/DensePose, decoder + v1convx + chart predictor), written down from its list of
# layers: detectron2 itself is not installed


class Chart(nn.Module):
    """Decoder (Panoptic FPN's, one 1x1 convolution at its end), 8 convolutions, 4 deconvolutions, doubling."""

    def __init__(self, coarse: int, parts: int, width: int, hidden: int, convs: int) -> None:
        super().__init__()
        repeats = {"p2": 1, "p3": 1, "p4": 2, "p5": 3}
        self.scales = nn.ModuleDict(
            {name: nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(k)) for name, k in repeats.items()}
        )
        self.predictor = nn.Conv2d(width, width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(hidden if k else width, hidden, 3, 1, 1) for k in range(convs))
        self.outs = nn.ModuleList(
            nn.ConvTranspose2d(hidden, count, 4, stride=2, padding=1) for count in (coarse, parts, parts, parts)
        )

    def decoder(self, features: dict[str, Tensor]) -> Tensor:
        total: Any = 0
        for name, steps in self.scales.items():
            x = features[name]
            for step in cast(nn.ModuleList, steps):
                x = step(x).relu()
                if name != "p2":
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            total = total + x
        return self.predictor(total)

    def forward(self, pooled: Tensor) -> list[Tensor]:
        for conv in self.convs:
            pooled = conv(pooled).relu()
        return [F.interpolate(out(pooled), scale_factor=2, mode="bilinear", align_corners=False) for out in self.outs]


@pytest.mark.parametrize("coarse", [2, 15])
def test_with_equal_weights_the_head_is_detectron2s(coarse: int) -> None:
    torch.manual_seed(0)
    neck = build("neck", {"name": "fpn", "channels": 16}, build("backbone", small_densepose_rcnn()["backbone"]))
    ours = SurfaceHead(neck, 2, coarse_channels=coarse, decoder={"name": "semantic_fpn", "channels": 16, "norm": None},
                       channels=[24] * 8, resolution=8)  # fmt: skip
    theirs = Chart(coarse, 25, 16, 24, 8)
    assert ours.decoder is not None
    parameters = list(ours.decoder.parameters()), list(ours.body.parameters()), list(ours.predictor.parameters())
    copied = [each for part in parameters for each in part]
    assert [each.shape for each in theirs.parameters()] == [each.shape for each in copied]
    with torch.no_grad():
        for target, source in zip(theirs.parameters(), copied, strict=True):
            target.copy_(source.normal_(std=0.2))
        features = {f"p{k}": torch.randn(1, 16, 2 ** (7 - k), 2 ** (7 - k)) for k in (2, 3, 4, 5)}
        features |= ours.decoded(features)
        expected_map = theirs.decoder(features)
        assert torch.allclose(features["surface_map"], expected_map, rtol=1e-5, atol=1e-5)
        boxes = [torch.tensor([[3.0, 5, 90, 70], [20, 10, 60, 120]])]
        found = ours(features, boxes)
        expected = theirs(ours.pool({"p2": expected_map}, boxes))
    for value, wanted in zip(found.values(), expected, strict=True):
        assert value.shape[-2:] == (32, 32)
        assert float((value - wanted).abs().max() / wanted.abs().max()) <= 1e-5


# ---- losses


def test_a_point_at_the_centre_of_a_cell_reads_that_cell() -> None:
    values = torch.randn(1, 3, 28, 28)
    place = torch.tensor([[[2 * 5.5 / 28 - 1, 2 * 9.5 / 28 - 1]]])
    assert torch.allclose(values_at(values, place)[0, :, 0], values[0, :, 9, 5], atol=1e-5)


def test_losses_of_guessing_and_of_points_outside() -> None:
    raw = {name: value.requires_grad_() for name, value in charts(2).items()}
    points = torch.cat([labelled(20, 30, 1, 0.5, 2.5), labelled(40, 30, 1, 0.5, 0.5)])  # the second is outside
    losses = point_losses(raw, points, BOX.repeat(2, 1), torch.ones(2))
    assert float(losses["loss_part"].detach()) == pytest.approx(math.log(4))
    assert float(losses["loss_u"].detach()) == pytest.approx(0.125)  # smooth L1: half of the square below 1
    assert float(losses["loss_v"].detach()) == pytest.approx(2.0)  # and the distance less a half above
    sum(losses.values(), torch.zeros(())).backward()
    learnt = {name: cast(Tensor, raw[name].grad) for name in (PARTS, U, V)}
    assert all(bool(gradient[0].any()) and not gradient[1].any() for gradient in learnt.values())
    assert not learnt[U][0, [0, 2, 3]].any(), "only the true part's coordinates learn"


def test_background_teaches_the_parts_alone_and_a_missing_point_nothing() -> None:
    background, missing = (
        point_losses(charts(), labelled(20, 30, part, 0.9, 0.9), BOX, torch.ones(1)) for part in (0, -1)
    )
    assert float(background["loss_part"]) == pytest.approx(math.log(4)) and float(background["loss_u"]) == 0
    assert not any(float(value) for value in missing.values())


def test_coarse_targets_take_the_pixel_under_each_centre() -> None:
    maps = torch.arange(64)[None, :, None] * 64 + torch.arange(64)[None, None]
    found = coarse_targets(maps, torch.tensor([[8.0, 16, 16, 32]]), torch.tensor([0]), 8)
    assert found[0, 0].tolist() == [17 * 64 + k for k in range(8, 16)]
    assert found[0, :, 0].tolist() == [(17 + 2 * k) * 64 + 8 for k in range(8)]
    assert float(coarse_loss(torch.zeros(1, 15, 8, 8), found % 15, torch.ones(1))) == pytest.approx(math.log(15))


# ---- results


def test_a_surface_is_laid_over_the_pixels_whose_centres_lie_in_the_box() -> None:
    raw = charts()
    raw[COARSE][0, 1, :, 14:] = 1  # the right half is the object
    raw[PARTS][0, 2] = 1
    ramp = (torch.arange(28) + 0.5) / 28
    raw[U][0, 2], raw[V][0, 2] = ramp[None, :], ramp[:, None] * 2
    surface = paste({name: value[0] for name, value in raw.items()}, BOX[0], (60, 64)).finish()
    assert surface.origin_xy == (10, 20) and surface.parts.shape == (40, 28)  # the image ends at row 60
    assert set(np.unique(surface.parts[:, :14])) == {0} and set(np.unique(surface.parts[:, 14:])) == {2}
    x, y = 20, 16  # of the array
    assert surface.uv[0, y, x] == round(255 * (x + 0.5) / 28)
    assert surface.uv[1, y, x] == pytest.approx(255 * 2 * (y + 0.5) / 56, abs=1)
    assert surface.uv[1, 39].max() == 255 and not surface.uv[:, :, :14].any()


def test_a_box_thinner_than_a_pixel_has_one() -> None:
    one = paste({name: value[0] for name, value in charts().items()}, torch.tensor([7.6, 0, 7.9, 0.2]), (8, 8))
    assert one.iuv.shape == (3, 1, 1) and one.origin_xy == (7, 0)


# ---- targets


def target(count: int = 9) -> dict[str, Any]:
    boxes = [[8.0, 8, 34, 40], [42.0, 20, 74, 56]]
    whole = rectangles(64, 80, boxes, [1, 2])
    points = surface_points_in(whole["boxes"], 2)[:, :count]
    return {**whole, "surface_points": points, "coarse_parts": whole["masks"] * 14}


def test_surface_points_go_where_the_pixels_go() -> None:
    before = target()
    small = resize_target(before, Resize((64, 80), (32, 20)))["surface_points"]
    ratio = torch.tensor([0.25, 0.5])
    assert torch.allclose(small[..., :2], before["surface_points"][..., :2] * ratio)
    assert torch.equal(small[..., 2:], before["surface_points"][..., 2:])
    moved = warp(Sample.fresh(torch.zeros(3, 64, 80), before), translation(-20, 0), min_visible=0.0).target
    gone = before["surface_points"][..., 0] < 20
    assert torch.equal(moved["surface_points"][..., 2] < 0, gone) and bool(gone.any())
    assert set(moved["coarse_parts"].unique().tolist()) == {0, 14}
    area = torch.zeros((64, 80), dtype=torch.bool)
    area[:, 40:] = True
    covered = cover_target(before, area)["surface_points"]
    assert (covered[0, :, 2] == -1).all() and (covered[1, :, 2] == 2).all()


def test_samples_of_different_numbers_of_points_can_be_mixed() -> None:
    one, other = (Sample.fresh(torch.zeros(3, 64, 80), target(count)) for count in (9, 4))
    mixed = cutmix(one, other, torch.Generator().manual_seed(1)).target
    assert mixed["surface_points"].shape[1:] == (9, 5) and len(mixed["surface_points"]) == len(mixed["labels"])


@pytest.mark.parametrize("name", ["surface_points", "coarse_parts"])
def test_a_surface_cannot_be_mirrored(name: str) -> None:
    one = {key: value for key, value in target().items() if key in ("boxes", "labels", "masks", name)}
    with pytest.raises(TargetError, match="do not flip"):
        warp(Sample.fresh(torch.zeros(3, 64, 80), one), horizontal_flip((64, 80)))


def test_what_cannot_be_learnt_is_refused() -> None:
    images = [as_tensor(picture(64, 80))]

    def losses(left_out: str, **changes: Any) -> dict[str, Tensor]:
        config = small_densepose_rcnn()
        config["heads"]["surface"] |= changes
        entries = {key: value for key, value in target().items() if key != left_out}
        return create_model("densepose_rcnn", **config).train()(images, [entries])

    with pytest.raises(TargetError, match=r"'surface_points' \(2, P, 5\)"):
        losses("surface_points")
    with pytest.raises(TargetError, match="needs 'masks'"):
        losses("masks")
    with pytest.raises(TargetError, match="needs 'coarse_parts'"):
        losses("coarse_parts", coarse_channels=15)
    with pytest.raises(TargetError, match="at most 1, got 2"):
        losses("", num_parts=1)
    with pytest.raises(TargetError, match="below 14, got 14"):
        losses("", coarse_channels=14)
    assert set(losses("", coarse_channels=15)) == set(losses(""))
    with pytest.raises(ConfigError, match="'box' and 'surface'"):
        create_model("densepose_rcnn", heads={"surface": None})


def test_without_a_decoder_regions_are_pooled_from_the_pyramid() -> None:
    config = small_densepose_rcnn()
    config["heads"]["surface"]["decoder"] = None
    model = create_model("densepose_rcnn", **config).eval()
    raw = model.dense(model.transform.batch([as_tensor(picture(64, 80))])[0])
    assert isinstance(model, DensePoseRCNN) and model.surface_head.levels == ["p2", "p3", "p4", "p5"]
    assert "surface_map" not in raw
    assert isinstance(model.predict([as_tensor(picture(64, 80))])[0].finish(), Landmarks)


# ---- digitscape's exact surfaces


def digits() -> Scene:
    style = SceneStyle(digits=(2, 2), empty_share=0.0, size_px=(40.0, 48.0), noise_std=0.0, blur_share=0.0)
    return Digitscape("train", (80, 96), seed=3, style=style).scene(0)


def test_points_of_a_scene_are_its_pixels() -> None:
    scene = digits()
    points = scene.surface_points(5000, seed=1)
    assert points.shape == (2, 5000, 5) and scene.uv is not None
    for found, mask, label in zip(points, scene.masks, scene.labels, strict=True):
        found = found[found[:, 2] >= 0]
        assert len(found) == mask.sum() and (found[:, 2] == label).all()
        columns, rows = found[:, :2].astype(int).T
        assert mask[rows, columns].all() and (found[:, :2] % 1 == 0.5).all()
        assert np.array_equal(found[:, 3:], scene.uv[rows, columns])
    with pytest.raises(DigitscapeError, match="dense truth"):
        Digitscape("train", (80, 96), dense=False).scene(0).surface_points(5)


def uv_at(surface: Surface, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts (k,) and coordinates (k, 2) that a surface has at pixels of the image; part 0 outside of it."""
    x, y = columns - surface.origin_xy[0], rows - surface.origin_xy[1]
    inside = (x >= 0) & (y >= 0) & (x < surface.parts.shape[1]) & (y < surface.parts.shape[0])
    x, y = np.where(inside, x, 0), np.where(inside, y, 0)
    return np.where(inside, surface.parts[y, x], 0), surface.uv[:, y, x].T / 255


def learnt_by_heart(scene: Scene) -> Landmarks:
    """What a model finds in a scene that it has seen 120 times."""
    entries = {
        "boxes": torch.from_numpy(scene.boxes_xyxy),
        "labels": torch.from_numpy(scene.labels).long(),
        "masks": torch.from_numpy(scene.masks).to(torch.uint8),
        "surface_points": torch.from_numpy(scene.surface_points(200)),
    }
    config = small_densepose_rcnn(num_classes=11, transform={"min_size": 80, "max_size": 96})
    config["heads"]["surface"] |= {"num_parts": 10, "channels": [64, 64], "resolution": 14}
    config["loss_weights"] = {"loss_u": 0.1, "loss_v": 0.1}
    torch.manual_seed(0)
    model, image = create_model("densepose_rcnn", **config), as_tensor(scene.image_rgb)
    loop = LoopConfig(steps=120, learning_rate=3e-3, warmup_steps=10, weight_decay=0.0, decay_from=70)
    Trainer(model, lambda step: weighted_losses(model, [image], [entries]), loop).run()
    found: Landmarks = model.eval().predict([image])[0].finish(0.5)
    return found


def test_it_learns_which_point_of_a_digit_each_pixel_shows() -> None:
    """At all pixels of a scene learnt by heart: parts are right, coordinates within a twentieth, GPS is above .95."""
    scene = digits()
    found = learnt_by_heart(scene)
    assert found.surfaces is not None and sorted(found.labels.tolist()) == sorted(scene.labels.tolist())
    for label, points in zip(scene.labels, scene.surface_points(5000), strict=True):
        points = points[points[:, 2] >= 0]
        parts, uv = uv_at(found.surfaces[int(np.argmax(found.labels == label))], *points[:, :2].astype(int).T)
        right, apart = parts == label, np.abs(uv - points[:, 3:])
        distances = np.where(right, np.hypot(*apart.T), np.inf)[None]  # a digit's chart is flat: straight ways on it
        assert right.mean() > 0.95
        assert apart[right].mean() < 0.05
        assert geodesic_point_similarity(distances)[0] > 0.95
