"""Keypoint R-CNN: with equal weights it is torchvision's; its targets, its loss and its weights in hand cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from modelkit import ConfigError, TargetError, create_model, import_weights
from modelkit.detection.keypoints import COCO_PERSON, keypoint_loss, peaks_in_boxes, target_cells
from modelkit.importing import TABLES
from modelkit.published import find_published
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.student import weighted_losses
from tests.modelkit.builders import as_tensor, picture, points_in, rectangles, small_keypoint_rcnn
from tests.modelkit.detection.test_torchvision_parity import images, ours_from, reference

NAME = "keypointrcnn_resnet50_fpn"
ONE_SIZE: dict[str, Any] = {"min_size": 128, "max_size": 200, "train_min_sizes": []}


def point(x: float, y: float, v: float = 2) -> torch.Tensor:
    return torch.tensor([[[x, y, v]]])


def test_a_point_on_the_edge_belongs_to_the_last_cell_and_one_outside_to_none() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    cells, known = target_cells(point(10, 5), box, 56)
    assert cells.tolist() == [[28 * 56 + 55]] == [[1623]] and known.all()
    for unknown in (point(10.5, 5), point(5, -0.1), point(5, 5, v=0)):
        assert not target_cells(unknown, box, 56)[1].any()


def test_the_loss_at_zero_logits_is_that_of_guessing() -> None:
    boxes, logits = torch.tensor([[0.0, 0, 10, 10]] * 2), torch.zeros((2, 1, 56, 56), requires_grad=True)
    keypoints = torch.cat([point(4, 5), point(20, 5)])  # the second is outside
    loss = keypoint_loss(logits, keypoints, boxes, torch.ones(2))
    assert float(loss.detach()) == pytest.approx(math.log(3136)) == pytest.approx(8.0507, abs=1e-4)
    loss.backward()
    assert logits.grad is not None and bool(logits.grad[0].any()) and not logits.grad[1].any()
    assert float(keypoint_loss(logits, keypoints[1:].repeat(2, 1, 1), boxes, torch.ones(2)).detach()) == 0
    half = keypoint_loss(logits, keypoints, boxes, torch.tensor([0.5, 1.0]))
    assert float(half.detach()) == pytest.approx(0.5 * math.log(3136))


def test_a_peak_comes_back_to_its_place_in_the_box() -> None:
    keypoints, box = point(33.3, 21.8), torch.tensor([[10.0, 4, 66, 60]])
    cells, _ = target_cells(keypoints, box, 56)
    logits = torch.nn.functional.one_hot(cells, 3136).float().view(1, 1, 56, 56)
    places, values = peaks_in_boxes(logits, box)
    assert float((places - keypoints[..., :2]).abs().max()) <= 0.5
    assert values.tolist() == [[1.0]]


def test_same_weights_give_torchvisions_points() -> None:
    theirs = reference(NAME)
    with torch.no_grad():  # fresh logits are nearly flat, and rounding would decide where their peak is
        theirs.roi_heads.keypoint_predictor.kps_score_lowres.weight.mul_(20)
    ours = ours_from(NAME, theirs, transform=ONE_SIZE)
    with torch.inference_mode():
        expected = theirs([image.clone() for image in images()])
    for wanted, found in zip(expected, ours.predict(images()), strict=True):
        assert len(wanted["scores"]) == len(found.scores) == 20
        assert torch.equal(wanted["labels"], found.labels)
        pairs = {
            "boxes": (wanted["boxes"], found.boxes_xyxy),
            "scores": (wanted["scores"], found.scores),
            "points": (wanted["keypoints"][..., :2], found.keypoints_xy),
            "point scores": (wanted["keypoints_scores"].sigmoid(), found.keypoint_scores),
        }
        worst = {name: float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for name, (a, b) in pairs.items()}
        assert max(worst.values()) <= 1e-5, worst


def test_same_seed_gives_torchvisions_losses() -> None:
    theirs = reference(NAME).train()
    ours = ours_from(NAME, theirs, transform=ONE_SIZE).train()
    theirs.transform.torch_choice = lambda sizes: sizes[0]
    targets = []
    for (height, width), boxes in (((120, 150), [[10.0, 10, 60, 70], [50, 40, 140, 110]]), ((151, 97), [])):
        target = rectangles(height, width, boxes, [1] * len(boxes))
        keypoints = points_in(target["boxes"], 17)
        keypoints[:, 3, 2] = 0
        targets.append({"boxes": target["boxes"], "labels": target["labels"], "keypoints": keypoints})
    torch.manual_seed(3)
    expected = theirs([each.clone() for each in images()], [{k: v.clone() for k, v in t.items()} for t in targets])
    torch.manual_seed(3)
    actual = ours(images(), targets)
    assert expected.keys() == actual.keys() == ours.loss_weights.keys()
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name


def test_a_checkpoint_brings_its_points_and_their_names(tmp_path: Path) -> None:
    theirs = torchvision.models.detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    record = import_weights(NAME, tmp_path / "theirs.pth", tmp_path)
    assert record.keypoints == COCO_PERSON and [each.name for each in record.classes] == ["person"]
    assert record.kind == "keypoints"
    inferred = TABLES[NAME].infer({"roi_heads.keypoint_predictor.kps_score_lowres.bias": torch.zeros(5)})
    assert inferred["heads"]["keypoint"]["num_keypoints"] == 5


@pytest.mark.parametrize("weights", ["COCO_V1", "COCO_LEGACY"])
def test_published_weights_know_people_and_their_points(weights: str) -> None:
    published = find_published(NAME, weights)
    assert [(each.id, each.name) for each in published.classes] == [(1, "person")]
    meta = torchvision.models.get_weight(published.entry).meta
    assert COCO_PERSON.names == tuple(meta["keypoint_names"])


def test_what_cannot_be_learnt_is_refused() -> None:
    model = create_model("keypoint_rcnn", **small_keypoint_rcnn()).train()
    with pytest.raises(TargetError, match=r"needs 'keypoints' \(1, 3, 3\)"):
        model([as_tensor(picture(64, 80))], [rectangles(64, 80, [[8, 8, 40, 50]], [1])])
    with pytest.raises(ConfigError, match="'box' and 'keypoint'"):
        create_model("keypoint_rcnn", heads={"keypoint": None})


def test_it_learns_where_the_corners_of_rectangles_are() -> None:
    """Points within two pixels of those of a scene that it learnt by heart."""
    image = torch.full((3, 64, 80), 0.2)
    boxes = [[8.0, 8, 34, 40], [42.0, 20, 74, 56]]
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[k, int(y1) : int(y2), int(x1) : int(x2)] = 0.9
    target = rectangles(64, 80, boxes, [1, 2])
    target["keypoints"] = points_in(target["boxes"], 3)
    torch.manual_seed(0)
    model = create_model("keypoint_rcnn", **small_keypoint_rcnn())
    loop = LoopConfig(steps=100, learning_rate=3e-3, warmup_steps=10, weight_decay=0.0, decay_from=60)
    Trainer(model, lambda step: weighted_losses(model, [image] * 2, [target] * 2), loop).run()
    found = model.eval().predict([image])[0].finish(0.5)
    assert sorted(found.labels.tolist()) == [1, 2]
    for label, truth in zip((1, 2), target["keypoints"].numpy(), strict=True):
        points = found.keypoints_xy[found.labels == label][0]
        assert abs(points - truth[:, :2]).max() < 2.0
