"""RetinaFace: priors, matching, codes, losses, decoding, a mesh; and the published checkpoint on photographs."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from modelkit import ConfigError, TargetError, create_model, import_weights, load
from modelkit.carriers.fields import Resize, Warp
from modelkit.carriers.targets import FIELDS, resize_target, warp_target
from modelkit.faces import FACE_POINTS
from modelkit.faces.losses import decode_points, encode_points
from modelkit.onestage.matching import FaceMatcher
from modelkit.onestage.priors import prior_boxes
from tests.modelkit.builders import points_in, rectangles, small_retinaface
from tests.modelkit.scenes import dotted_faces

SHARED = Path(__file__).parents[4] / "shared"
CHECKPOINT, PHOTOGRAPHS = SHARED / "weights" / "retinaface_mobilenet0.25_Final.pth", SHARED / "data" / "faces_dlib"
CPU = torch.device("cpu")


def test_there_are_as_many_priors_as_published() -> None:
    model = create_model("retinaface")
    priors = model.head.priors((640, 640), CPU)
    assert len(priors) == 16_800
    assert priors[:2].tolist() == [[4, 4, 16, 16], [4, 4, 32, 32]]
    assert priors[-1].tolist() == [624, 624, 512, 512]


def test_priors_stay_a_stride_apart_where_it_does_not_divide_the_side() -> None:
    args = ((30, 30), (8,), ((16.0,),), (1.0,), True, CPU)
    assert prior_boxes(*args, spread=False)[:4, 0].tolist() == [4, 12, 20, 28]
    assert prior_boxes(*args)[:4, 0].tolist() == [3.75, 11.25, 18.75, 26.25]


def match(priors: list[list[float]], boxes: list[list[float]]) -> tuple[list[int], list[int]]:
    target = {"boxes": torch.tensor(boxes), "labels": torch.arange(1, len(boxes) + 1)}
    labels, matched = FaceMatcher()(torch.tensor(priors), target)
    return labels.tolist(), matched.tolist()


def test_an_objects_best_prior_is_forced_from_an_iou_of_a_fifth_on() -> None:
    priors = [[0.0, 0, 10, 10], [100, 0, 110, 10]]
    assert match(priors, [[0.0, 0, 5, 5]])[0] == [1, 0]  # IoU .25
    assert match(priors, [[0.0, 0, 4, 4]])[0] == [0, 0]  # IoU .16
    labels, matched = match(priors, [[0.0, 0, 10, 9], [0, 0, 5, 5]])
    assert (labels, matched[0]) == ([2, 0], 1), "the last object with the same best prior gets it"
    assert match(priors, [[0.0, 0, 10, 9], [0, 0, 4, 4]])[0] == [1, 0], "one that fits no prior takes none away"


@pytest.mark.parametrize("width", [2, 3])
def test_codes_of_points_come_back(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points, priors = torch.rand(6, 5, width, generator=generator) * 90, torch.rand(6, 4, generator=generator) * 60 + 1
    assert (decode_points(encode_points(points, priors), priors) - points).abs().max() < 1e-5 * 90
    prior = torch.tensor([[50.0, 40, 20, 10]])
    assert encode_points(torch.tensor([[[52.0, 39.0]]]), prior).tolist() == [[[1.0, -1.0]]]


def test_a_mirror_keeps_right_and_left() -> None:
    """Afterwards the right eye still is the person's right one: in a picture that is mirrored, the other dot."""
    _, target = dotted_faces((60, 80), [[10.0, 10, 50, 50]])
    mirror = torch.tensor([[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    moved = warp_target(target, Warp(mirror, (60, 80), FACE_POINTS.flip_pairs))["keypoints"][0]
    before = target["keypoints"][0]
    right, left = FACE_POINTS.names.index("right_eye"), FACE_POINTS.names.index("left_eye")
    assert moved[right, 0] == 80 - before[left, 0]
    assert moved[left, 0] == 80 - before[right, 0]
    assert moved[right, 0] < moved[left, 0], "faces look at us in both pictures, so the right eye is on the left"
    assert moved[2].tolist() == [80 - float(before[2, 0]), float(before[2, 1]), 2.0]


def losses_and_gradients(target: dict[str, Tensor], **config: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Losses, and how much each branch of the head would change."""
    torch.manual_seed(0)
    model = create_model("retinaface", **small_retinaface(**config)).train()
    losses = model([torch.rand(3, 64, 80)], [target])
    sum(losses.values(), torch.zeros(())).backward()
    grads = {
        name: sum(float(p.grad.abs().sum()) for p in branch.parameters() if p.grad is not None)
        for name, branch in model.head.branches.items()
    }
    return losses, grads


def test_objects_whose_points_nobody_labelled_teach_class_and_box_alone() -> None:
    target = rectangles(64, 80, [[8, 8, 30, 40]], [1])
    unlabelled = torch.full((1, 5, 3), torch.nan)
    unlabelled[..., 2] = 0
    for given in (target, {**target, "keypoints": unlabelled}):
        losses, grads = losses_and_gradients(given)
        assert losses["loss_keypoint"].item() == 0
        assert grads["points"] == 0
        assert min(grads["logits"], grads["deltas"]) > 0
    _, grads = losses_and_gradients({**target, "keypoints": points_in(target["boxes"], 5)})
    assert grads["points"] > 0


def test_a_mesh_is_learnt_and_comes_back_in_source_pixels() -> None:
    target = rectangles(64, 80, [[8, 8, 30, 40]], [1])
    mesh = torch.tensor([[[10.0, 12, 3, 1], [25, 30, -2, 1], [20, 20, 0, 0]]])
    losses, grads = losses_and_gradients({**target, "meshes": mesh})
    assert losses["loss_mesh"].item() > 0
    assert grads["meshes"] > 0
    model = create_model("retinaface", **small_retinaface()).eval()
    found = model.predict([torch.rand(3, 64, 80)])[0]
    assert found.meshes.shape == (len(found.scores), 3, 3)
    larger = resize_target({"meshes": mesh}, Resize((64, 80), (128, 160)))["meshes"]
    assert larger[0, 0].tolist() == [20, 24, 6, 1]
    mirror = Warp(torch.tensor([[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]], dtype=torch.float64), (64, 80))
    with pytest.raises(TargetError, match="mesh was mirrored"):
        FIELDS["meshes"].warped(mesh, mirror)


def test_points_of_another_number_and_scales_for_other_maps_are_refused() -> None:
    target = rectangles(64, 80, [[8, 8, 30, 40]], [1])
    with pytest.raises(TargetError, match=r"keypoints must be \(1, 5, 3\)"):
        losses_and_gradients({**target, "keypoints": torch.zeros(1, 4, 3)})
    with pytest.raises(ConfigError, match="anchor_scales"):
        create_model("retinaface", head={"anchor_scales": [[16, 32]]})


def test_it_learns_one_image_by_heart() -> None:
    boxes = [[6.0, 8, 46, 48], [60, 10, 92, 42], [30, 56, 78, 92]]
    image, target = dotted_faces((96, 96), boxes)
    torch.manual_seed(0)
    config = small_retinaface(num_classes=2, head={"anchor_scales": [[8, 16], [24, 32], [48, 64]]})
    model = create_model("retinaface", **{**config, "transform": {"min_size": 96, "max_size": 96}}).train()
    optimiser = torch.optim.Adam(model.parameters(), 8e-3)
    for step in range(80):
        optimiser.param_groups[0]["lr"] = 8e-3 * (1 - step / 80)
        losses = model([image], [target])
        optimiser.zero_grad()
        sum((model.loss_weights[name] * loss for name, loss in losses.items()), torch.zeros(())).backward()
        optimiser.step()
    found = model.eval().predict([image])[0].finish(0.5)
    overlap = box_iou(target["boxes"], torch.from_numpy(found.boxes_xyxy))
    assert len(found) == 3
    assert overlap.amax(1).min() > 0.8
    points = found.keypoints_xy[overlap.argmax(1)]
    sides = np.sqrt([(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes])
    errors = np.linalg.norm(points - target["keypoints"][..., :2].numpy(), axis=-1) / sides[:, None]
    assert errors.mean() < 0.05


@pytest.mark.skipif(not (CHECKPOINT.exists() and PHOTOGRAPHS.exists()), reason="needs the published checkpoint")
def test_the_published_checkpoint_finds_the_faces_of_photographs(tmp_path: Path, record_property: Any) -> None:
    record = import_weights("retinaface", CHECKPOINT, tmp_path)
    assert record.keypoints == FACE_POINTS
    assert [each.name for each in record.classes] == ["face"]
    predictor = load(tmp_path)
    annotated = reached = above = 0
    for entry in xml.etree.ElementTree.parse(PHOTOGRAPHS / "training_with_face_landmarks.xml").iter("image"):
        with Image.open(PHOTOGRAPHS / str(entry.get("file"))) as picture:
            found = predictor([np.asarray(picture.convert("RGB"))])[0].at_least(0.5)
        above += len(found)
        for box in entry.iter("box"):
            left, top, width, height = (float(box.get(key, "nan")) for key in ("left", "top", "width", "height"))
            true_box = torch.tensor([[left, top, left + width, top + height]])
            overlap = box_iou(true_box, torch.from_numpy(found.boxes_xyxy))[0]
            annotated, reached = annotated + 1, reached + int(overlap.max() >= 0.5)
            points, (x1, y1, x2, y2) = found.keypoints_xy[overlap.argmax()], found.boxes_xyxy[overlap.argmax()]
            assert ((points > [x1, y1]) & (points < [x2, y2])).all()
            parts = {p.get("name"): (float(p.get("x", 0)), float(p.get("y", 0))) for p in box.iter("part")}
            eyes = [np.mean([parts[f"{k:02d}"] for k in each], 0) for each in (range(36, 42), range(42, 48))]
            true = np.array([*eyes, parts["30"], parts["48"], parts["54"]])
            error = np.linalg.norm(points - true, axis=1).mean() / np.linalg.norm(eyes[0] - eyes[1])
            assert error < 0.25, "of the distance between the eyes, on average over the five points"
    record_property("faces", f"{reached} of {annotated} with {above} detections")
    assert (annotated, reached) == (18, 18)
    assert above <= 20
