"""CornerNet and CenterNet-triplet: pooling, grouping and centres on hand cases; perfect maps decode to the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from modelkit import ConfigError, create_model
from modelkit.points.center_targets import Spots
from modelkit.points.corner_pooling import (
    POOLS,
    PairPooling,
    bottom_pool,
    column_pool,
    left_pool,
    right_pool,
    row_pool,
    top_pool,
)
from modelkit.points.corner_targets import corner_targets, grouping_losses
from modelkit.points.grouping import Peaks, central_regions, confirm_by_centers, soft_nms
from modelkit.transform import Geometry
from tests.modelkit.builders import small_cornernet
from tests.modelkit.scenes import dotted_faces

CPU = torch.device("cpu")
MAP = torch.tensor([[1.0, 2, 0], [4, 0, 3], [0, 5, 1]])


def test_pools_are_the_largest_on_one_side() -> None:
    column = torch.tensor([[1.0], [3], [2], [0]])
    assert top_pool(column)[:, 0].tolist() == [3, 3, 2, 0]
    assert bottom_pool(column)[:, 0].tolist() == [1, 3, 3, 3]
    assert left_pool(column.T)[0].tolist() == [3, 3, 2, 0]
    assert right_pool(column.T)[0].tolist() == [1, 3, 3, 3]
    assert top_pool(MAP).tolist() == [[4, 5, 3], [4, 5, 3], [0, 5, 1]]
    assert left_pool(MAP).tolist() == [[2, 2, 0], [4, 3, 3], [5, 5, 1]]
    assert (top_pool(MAP) + left_pool(MAP)).tolist() == [[6, 7, 3], [8, 8, 6], [5, 10, 2]]
    assert (column_pool(MAP) + row_pool(MAP)).tolist() == [[6, 7, 5], [8, 9, 7], [9, 10, 8]]


def test_a_cascade_looks_along_the_edge_before_it_looks_inside() -> None:
    """With all else silent, a value below and to the right of a cell reaches it only through both looks."""
    torch.manual_seed(0)
    for cascade, reached in ((False, False), (True, True)):
        pooling = PairPooling(2, 2, POOLS["top_left"], torch.nn.BatchNorm2d, cascade).eval()
        x = torch.zeros(1, 2, 8, 8)
        lit = x.clone()
        lit[0, :, 6, 6] = 5
        changed = (pooling(lit) - pooling(x)).abs().sum((0, 1))
        assert bool(changed[:3, :3].any()) == reached


def spots(tags: list[float], image: int = 0) -> Spots:
    found = Spots()
    for column in range(len(tags)):
        found.add((image, 0, column), [0.0, 0.0], [1.0])
    return found


@pytest.mark.parametrize(
    ("first", "last", "pull", "push"),
    [([0.0, 2], [1.0, 2], 0.25, 0.0), ([0.5, 0.5], [0.5, 0.5], 0.0, 1.0), ([0.0, 0.4], [0.0, 0.4], 0.0, 0.6)],
)
def test_tags_are_pulled_and_pushed(first: list[float], last: list[float], pull: float, push: float) -> None:
    tags = [torch.tensor(each).view(1, 1, 1, -1) for each in (first, last)]
    found = grouping_losses(tags, [spots(first), spots(last)])
    assert [float(each) for each in found] == pytest.approx([pull, push], abs=1e-3)


def test_central_regions_are_thirds_of_small_boxes_and_fifths_of_large_ones() -> None:
    boxes = torch.tensor([[30.0, 60, 120, 150], [0, 0, 200, 200]])
    assert torch.allclose(central_regions(boxes), torch.tensor([[60.0, 90, 90, 120], [80, 80, 120, 120]]))


def test_a_box_stays_with_a_centre_of_its_class_within_its_region() -> None:
    box, score, label = torch.tensor([[30.0, 60, 120, 150]]), torch.tensor([0.6]), torch.tensor([1])

    def kept(x: float, y: float, of: int = 1) -> list[float]:
        other = [75.0, 105.0], 0.3, of  # a worse one, that does not count
        places, scores, labels = zip(([x, y], 0.9, of), other, strict=True)
        centers = Peaks(torch.tensor(places), torch.tensor(scores), torch.tensor(labels), torch.zeros(2))
        return [round(s, 4) for s in confirm_by_centers(box, score, label, centers)[1].tolist()]

    assert kept(70, 100) == [0.7]
    assert kept(60, 100) == [0.5], "the region is open: the other centre confirms it"
    assert kept(70, 100, of=0) == []
    empty = Peaks(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert len(confirm_by_centers(box, score, label, empty)[0]) == 0


def test_soft_suppression_lowers_what_overlaps_a_better_box_of_its_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 2.5, 10, 12.5], [0, 5, 10, 15]])
    scores, one = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    index, score = soft_nms(boxes, scores, one)
    first = torch.exp(torch.tensor(-(0.6**2) / 0.5))
    third = 0.7 * torch.exp(torch.tensor(-((1 / 3) ** 2) / 0.5))
    second = 0.8 * first * first
    assert index.tolist() == [0, 2, 1]
    assert score.tolist() == pytest.approx([0.9, float(third), float(second)], rel=1e-5)
    assert soft_nms(boxes, scores, torch.tensor([0, 1, 2]))[1].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert soft_nms(boxes, scores, one, min_score=0.5)[0].tolist() == [0, 2]
    assert soft_nms(boxes, scores, one, count=1)[0].tolist() == [0]


def perfect(model: Any, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Maps as a network would have to give them, with a tag for each object."""
    target = {"boxes": boxes, "labels": labels}
    drawn = corner_targets([target], 3, (32, 32), 4, model.head.drawing, CPU)
    raw = {}
    for kind, own in drawn.items():
        raw[f"{kind}_maps"] = own.maps.clamp(1e-6, 1 - 1e-6).logit()
        raw[f"{kind}_offsets"], raw[f"{kind}_tags"] = torch.zeros(1, 2, 32, 32), torch.zeros(1, 1, 32, 32)
        for tag, ((_, row, column), values) in enumerate(zip(own.offsets.places, own.offsets.values, strict=True)):
            raw[f"{kind}_offsets"][0, :, row, column] = torch.tensor(values)
            raw[f"{kind}_tags"][0, 0, row, column] = 2.0 * tag
    return raw


BOXES = torch.tensor(
    [[10.3, 12.1, 50.2, 60.7], [70.4, 20.9, 110.6, 52.2], [30.5, 80.8, 90.3, 127.9], [8.1, 70.7, 28, 99]]
)
LABELS = torch.tensor([1, 2, 2, 1])
GEOMETRY = Geometry((256, 256), (128, 128), (128, 128))


@pytest.mark.parametrize("centers", [False, True])
def test_perfect_maps_decode_to_exactly_the_boxes(centers: bool) -> None:
    model = create_model(
        "cornernet", **small_cornernet(num_classes=3, head={"centers": centers, "norm": "group"})
    ).eval()
    found = model.decode(perfect(model, BOXES, LABELS), [GEOMETRY])[0].finish(0.9)
    overlap = box_iou(BOXES * 2, torch.from_numpy(found.boxes_xyxy))
    assert len(found) == 4
    assert overlap.amax(1).min() > 0.999
    assert found.labels[overlap.argmax(1)].tolist() == LABELS.tolist()
    assert found.keypoints_xy.shape == (4, 0, 2)


def test_a_box_without_its_centre_disappears() -> None:
    model = create_model("cornernet", **small_cornernet(num_classes=3, head={"centers": True, "norm": "group"})).eval()
    raw = perfect(model, BOXES, LABELS)
    x, y = ((BOXES[0, :2] + BOXES[0, 2:]) / 8).long().tolist()
    raw["center_maps"][0, 0, y - 4 : y + 5, x - 4 : x + 5] = -14
    found = model.decode(raw, [GEOMETRY])[0].finish(0.5)
    assert len(found) == 3
    assert box_iou(BOXES[:1] * 2, torch.from_numpy(found.boxes_xyxy)).max() < 0.5


@pytest.mark.parametrize("centers", [False, True])
def test_it_learns_one_image_by_heart(centers: bool) -> None:
    image, target = dotted_faces((96, 96), [[6.0, 8, 46, 48], [54, 14, 90, 50], [30, 52, 70, 92]])
    torch.manual_seed(0)
    transform = {"min_size": 96, "max_size": 96, "size_divisible": 32}
    config = small_cornernet(num_classes=2, head={"centers": centers}, transform=transform)
    model = create_model("cornernet", **config).train()
    optimiser = torch.optim.Adam(model.parameters(), 6e-3)
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 6e-3 * (1 - step / 60)
        losses = model([image], [target])
        optimiser.zero_grad()
        sum((model.loss_weights[name] * loss for name, loss in losses.items()), torch.zeros(())).backward()
        optimiser.step()
    found = model.eval().predict([image])[0].finish(0.4)
    assert box_iou(target["boxes"], torch.from_numpy(found.boxes_xyxy)).amax(1).min() > 0.7


def test_points_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_keypoints 5"):
        create_model("cornernet", **small_cornernet(num_keypoints=5))
