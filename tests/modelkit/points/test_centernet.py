"""CenterNet: radii, targets, losses on hand cases; perfect maps decode to the truth; poses snap to their peaks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import DeformConv2d, box_iou

from modelkit import ConfigError, create_model
from modelkit.layers.deformable import OffsetConv2d
from modelkit.points.center_head import snap_points
from modelkit.points.center_targets import CenterTargets, center_targets
from modelkit.points.gaussians import draw_gaussian, find_peaks, focal_loss, gaussian_radius
from modelkit.transform import Geometry
from tests.modelkit.builders import small_centernet
from tests.modelkit.scenes import dotted_faces

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sides", "old", "seven", "three"),
    [((32, 64), 11.769, 3.4476, 9.2487), ((10, 10), 2.7332, 0.8167, 2.2614), ((40, 20), 7.3559, 2.1548, 5.7805)],
)
def test_radii_are_those_of_both_papers(sides: tuple[int, int], old: float, seven: float, three: float) -> None:
    assert gaussian_radius(*sides, 0.7, exact=False) == pytest.approx(old, rel=1e-4)
    assert gaussian_radius(*sides, 0.7) == pytest.approx(seven, rel=1e-4)
    assert gaussian_radius(*sides, 0.3) == pytest.approx(three, rel=1e-4)


def test_gaussians_end_at_their_window_and_at_the_border_and_the_larger_value_stays() -> None:
    heat = torch.zeros(7, 9)
    draw_gaussian(heat, (1, 3), 2)
    sigma = 5 / 6
    assert heat[3, 1] == 1
    assert heat[3, 2].item() == pytest.approx(math.exp(-1 / (2 * sigma**2)))
    assert heat[5, 3].item() == pytest.approx(math.exp(-8 / (2 * sigma**2)))
    assert not heat[3, 4:].any()
    assert not heat[6].any()
    before = heat.clone()
    draw_gaussian(heat, (2, 3), 1)
    assert (heat >= before).all()
    assert heat[3, 1] == heat[3, 2] == 1


def test_the_focal_loss_has_the_papers_values() -> None:
    zero = torch.zeros(1)
    assert focal_loss(zero, torch.ones(1)).item() == pytest.approx(0.17328680)
    assert focal_loss(zero, torch.tensor([0.5])).item() == pytest.approx(0.01083042)
    fresh = torch.full((80, 128, 128), -2.19)
    peak = torch.zeros_like(fresh)
    peak[0, 5, 5] = 1
    p = 1 / (1 + math.exp(2.19))
    assert focal_loss(fresh, peak).item() == pytest.approx(1408.7 - (1 - p) ** 2 * math.log(p), rel=1e-4)


def draw(
    target: dict[str, Tensor], classes: int = 3, points: int = 0, grid: tuple[int, int] = (32, 32)
) -> CenterTargets:
    return center_targets([target], classes, points, grid, 4, CPU)


def target_of(boxes: list[list[float]], labels: list[int], **more: Any) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}


def test_a_box_becomes_a_cell_an_offset_and_a_size() -> None:
    drawn = draw(target_of([[10.0, 20, 50, 80]], [2]))
    assert (drawn.sizes.places, drawn.sizes.values) == ([(0, 12, 7)], [[10, 15]])
    assert drawn.offsets.values == [[0.5, 0.5]]
    assert drawn.centers[0, 1, 12, 7] == 1
    assert not drawn.centers[0, 0].any()


def test_what_is_not_sure_to_be_background_counts_nothing() -> None:
    """Crowds, ignored regions, and the whole object for a joint that nobody labelled; never an empty heatmap."""
    crowd = target_of([[0.0, 0, 64, 64], [80, 80, 120, 120]], [1, 1], iscrowd=torch.tensor([True, False]))
    drawn = draw(crowd)
    assert len(drawn.sizes.places) == 1
    assert not drawn.center_weights[0, 0, :16, :16].any()
    assert drawn.center_weights[0, 0, 25, 25] == 1
    points = torch.tensor([[[100.0, 90, 2], [0, 0, 0]]])
    drawn = draw(target_of([[80.0, 80, 120, 120]], [1], keypoints=points), points=2)
    assert drawn.point_maps[0, 0, 22, 25] == 1
    assert drawn.point_weights[0, 0].all()
    assert not drawn.point_weights[0, 1, 20:30, 20:30].any()
    assert drawn.point_weights[0, 1, :20].all()
    assert drawn.labelled == [[True, True, False, False]]


def perfect(drawn: CenterTargets) -> dict[str, Tensor]:
    """What a network would have to say for exactly these targets."""
    raw = {"centers": drawn.centers.clamp(1e-6, 1 - 1e-6).logit()}
    raw["point_maps"] = drawn.point_maps.clamp(1e-6, 1 - 1e-6).logit()
    grid = drawn.centers.shape[-2:]
    for name in ("sizes", "offsets", "points", "point_offsets"):
        spots = getattr(drawn, name)
        raw[name] = torch.zeros(1, len(spots.values[0]) if spots.values else 2, *grid)
        for (_, row, column), values in zip(spots.places, spots.values, strict=True):
            raw[name][0, :, row, column] = torch.tensor(values)
    return raw


def test_perfect_maps_decode_to_exactly_the_boxes_and_points() -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.tensor([[3.0, 5], [70, 20], [20, 66], [80, 80]]) + torch.rand(4, 2, generator=generator)
    boxes = torch.cat([corner, corner + 20 + 20 * torch.rand(4, 2, generator=generator)], 1)
    inside = boxes[:, None, :2] + torch.rand(4, 3, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
    points = torch.cat([inside, torch.full((4, 3, 1), 2.0)], -1)
    model = create_model("centernet", **small_centernet(num_classes=3, num_keypoints=3)).eval()
    drawn = draw({"boxes": boxes, "labels": torch.tensor([1, 2, 2, 1]), "keypoints": points}, points=3)
    geometry = Geometry((256, 256), (128, 128), (128, 128))
    found = model.decode(perfect(drawn), [geometry])[0].finish(0.9)
    order = box_iou(boxes * 2, torch.from_numpy(found.boxes_xyxy)).argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert abs(torch.from_numpy(found.boxes_xyxy)[order] - boxes * 2).max() < 1e-3
    assert abs(torch.from_numpy(found.keypoints_xy)[order] - inside * 2).max() < 1e-3
    assert found.labels[order].tolist() == [1, 2, 2, 1]


def test_of_two_objects_of_a_class_in_one_cell_one_is_lost() -> None:
    drawn = draw(target_of([[40.0, 40, 80, 80], [41, 41, 81, 81]], [1, 1]))
    model = create_model("centernet", **small_centernet(num_classes=3)).eval()
    geometry = Geometry((128, 128), (128, 128), (128, 128))
    assert len(model.decode(perfect(drawn), [geometry])[0].finish(0.9)) == 1


def test_joints_snap_to_a_near_and_sure_peak_of_their_own_within_the_box() -> None:
    raw = {"point_maps": torch.full((1, 20, 20), -9.0), "point_offsets": torch.full((2, 20, 20), 0.25)}
    boxes, pointed = torch.tensor([[2.0, 2, 12, 12]]), torch.tensor([[[6.0, 6]]])

    def placed(column: int, row: int, logit: float) -> list[float]:
        maps = raw["point_maps"].clone()
        maps[0, row, column] = logit
        points, scores = snap_points({**raw, "point_maps": maps}, pointed, boxes, 10)
        return [*points[0, 0].tolist(), round(float(scores[0, 0]), 4)]

    assert placed(8, 6, 0.0) == [8.25, 6.25, 0.5]
    assert placed(8, 6, -2.3) == [6, 6, 0.0001], "not sure: a probability below a tenth"
    assert placed(9, 6, 0.0) == [6, 6, 0.0001], "further than 0.3 of the larger side"
    boxes = torch.tensor([[2.0, 2, 8, 12]])
    assert placed(8, 6, 0.0) == [6, 6, 0.0001], "outside of the box"


def test_peaks_are_found_over_all_classes() -> None:
    heat = torch.zeros(2, 5, 6)
    heat[1, 2, 3], heat[1, 2, 4], heat[0, 4, 0] = 0.9, 0.8, 0.5
    score, channel, row, column = find_peaks(heat, 2)
    assert score.tolist() == pytest.approx([0.9, 0.5])
    assert (channel.tolist(), row.tolist(), column.tolist()) == ([1, 0], [2, 4], [3, 0])


def test_the_modulated_deformable_convolution_is_torchvisions() -> None:
    torch.manual_seed(0)
    layer = OffsetConv2d(3, 4, modulated=True)
    torch.nn.init.normal_(layer.offset.weight, std=0.3)
    x = torch.randn(2, 3, 9, 8)
    offset, mask = layer.offset(x).split([18, 9], 1)
    theirs = DeformConv2d(3, 4, 3, padding=1)
    theirs.load_state_dict(layer.deform.state_dict())
    assert torch.allclose(layer(x), theirs(x, offset, mask.sigmoid()), atol=1e-5)


@pytest.mark.parametrize("deformable", [False, True])
def test_it_learns_one_image_by_heart(deformable: bool) -> None:
    image, target = dotted_faces((96, 96), [[6.0, 8, 46, 48], [60, 10, 92, 42], [30, 52, 70, 92]])
    torch.manual_seed(0)
    backbone = {"name": "slim_resnet", "widths": [16, 32], "depths": [1, 1], "norm": "group", "out": ["c3"]}
    neck = {"channels": [16], "deformable": deformable, "norm": "group"}
    transform = {"min_size": 96, "max_size": 96}
    config = small_centernet(num_classes=2, num_keypoints=5, backbone=backbone, neck=neck, transform=transform)
    model = create_model("centernet", **config).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(90):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 90)
        losses = model([image], [target])
        optimiser.zero_grad()
        sum((model.loss_weights[name] * loss for name, loss in losses.items()), torch.zeros(())).backward()
        optimiser.step()
    found = model.eval().predict([image])[0].finish(0.5)
    overlap = box_iou(target["boxes"], torch.from_numpy(found.boxes_xyxy))
    assert len(found) == 3
    assert overlap.amax(1).min() > 0.8
    points = torch.from_numpy(found.keypoints_xy)[overlap.argmax(1)]
    assert (points - target["keypoints"][..., :2]).norm(dim=-1).mean() < 3, "pixels; objects have 32 to 48"


def test_a_model_without_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes 1"):
        create_model("centernet", num_classes=1)
