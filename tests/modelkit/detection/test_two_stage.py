"""Hand-worked numbers of the parts (research golden values) and the promises of the detector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import nms, roi_align

from modelkit import ConfigError, TargetError, create_model
from modelkit.detection import (
    BoxHead,
    Detections,
    MaskHead,
    ProposalSampler,
    PyramidRoIAlign,
    Samples,
    TwoStageDetector,
)
from modelkit.layers import FPN, SlimResNetBackbone
from modelkit.rle import decode
from tests.modelkit.builders import as_tensor, picture, rectangles, small_mask_rcnn


def small_neck() -> FPN:
    return FPN(SlimResNetBackbone(widths=[8, 8, 8, 8]), channels=8)


def detector(**changes: Any) -> TwoStageDetector:
    torch.manual_seed(0)
    model = create_model("mask_rcnn", **small_mask_rcnn(**changes))
    assert isinstance(model, TwoStageDetector)
    return model


def test_box_coder_golden_value() -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    encoded = coder.encode([torch.tensor([[1.0, 0.0, 11.0, 20.0]])], [torch.tensor([[0.0, 0.0, 10.0, 10.0]])])[0]
    assert encoded[0].tolist() == pytest.approx([1, 5, 0, 3.4657], abs=1e-4)


@pytest.mark.parametrize(("aligned", "expected"), [(False, [5, 6.75, 12, 13.75]), (True, [2.5, 4.5, 10.5, 12.5])])
def test_roi_align_golden_values(aligned: bool, expected: list[float]) -> None:
    feature = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = roi_align(feature, torch.tensor([[0.0, 0, 0, 4, 4]]), 2, 1.0, 2, aligned)
    assert pooled.flatten().tolist() == pytest.approx(expected)


def test_pyramid_pooling_uses_the_unaligned_rule_of_torchvision() -> None:
    neck = small_neck()
    pool = PyramidRoIAlign(neck, ["p2"], output_size=2)
    pooled = pool({"p2": torch.arange(16.0).reshape(1, 1, 4, 4)}, [torch.tensor([[0.0, 0, 16, 16]])])
    assert pooled.flatten().tolist() == pytest.approx([5, 6.75, 12, 13.75])


@pytest.mark.parametrize(("side", "level"), [(112, "p3"), (224, "p4"), (448, "p5"), (5, "p2"), (4000, "p5")])
def test_pyramid_level_of_a_box(side: float, level: str) -> None:
    pool = PyramidRoIAlign(small_neck(), ["p2", "p3", "p4", "p5"], output_size=7)
    index = int(pool.level_of(torch.tensor([[0.0, 0, side, side]])))
    assert pool.levels[index] == level


def test_pooling_many_levels_equals_pooling_each_box_from_its_own_level() -> None:
    torch.manual_seed(0)
    pool = PyramidRoIAlign(small_neck(), ["p2", "p3", "p4", "p5"], output_size=3, canonical_scale=56)
    features = {level: torch.rand(2, 8, 128 >> k, 128 >> k) for k, level in enumerate(pool.levels, start=2)}
    boxes = [torch.tensor([[0.0, 0, 20, 20], [3, 4, 100, 90]]), torch.tensor([[1.0, 2, 50, 60]])]
    pooled = pool(features, boxes)
    rois = [(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]
    for result, (image, box) in zip(pooled, rois, strict=True):
        level = int(pool.level_of(box[None]))
        roi = torch.cat([torch.tensor([float(image)]), box])[None]
        assert torch.allclose(result, roi_align(features[pool.levels[level]], roi, 3, 1 / 2 ** (level + 2), 2)[0])


def test_non_maximum_suppression_golden_case() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 2.5, 10, 12.5], [0, 5, 10, 15]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_a_full_mask_on_a_box_of_14_pixels_covers_196() -> None:
    box, label = torch.tensor([[10.0, 10, 24, 24]]), torch.ones(1, dtype=torch.int64)
    found = Detections((40, 40), box, torch.ones(1), label, torch.ones(1, 28, 28))
    instances = found.finish()
    assert instances.rles is not None
    mask = decode(instances.rles[0], (40, 40))
    assert mask.sum() == 196
    assert np.flatnonzero(mask.any(0)).tolist() == list(range(10, 24))
    assert np.flatnonzero(mask.any(1)).tolist() == list(range(10, 24))


def test_mask_loss_at_zero_logits_is_ln_2() -> None:
    head = MaskHead(small_neck(), 3, channels=[8], predictor_channels=8)
    target = rectangles(32, 32, [[4, 4, 20, 20]], [2])
    samples = Samples([target["boxes"]], [target["labels"]], [torch.zeros(1, dtype=torch.int64)], [target])
    loss = head.loss({"mask_logits": torch.zeros(1, 3, 28, 28)}, samples)["loss_mask"]
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


def test_mask_loss_looks_only_at_the_true_class() -> None:
    head = MaskHead(small_neck(), 3, channels=[8], predictor_channels=8)
    target = rectangles(32, 32, [[4, 4, 20, 20]], [2])
    samples = Samples([target["boxes"]], [target["labels"]], [torch.zeros(1, dtype=torch.int64)], [target])
    target["masks"][:] = 1  # no outline inside the box, so no soft values in the target
    logits = torch.full((1, 3, 28, 28), -50.0)
    logits[:, 2] = 50
    assert float(head.loss({"mask_logits": logits}, samples)["loss_mask"]) < 1e-6


def test_the_sampler_adds_the_truth_and_bounds_the_foreground() -> None:
    torch.manual_seed(0)
    truth = rectangles(64, 64, [[0, 0, 20, 20], [30, 30, 60, 60]], [1, 2])
    near = truth["boxes"][0] + torch.rand(50, 4)
    far = torch.tensor([[40.0, 0, 60, 20]]) + torch.rand(50, 1)
    samples = ProposalSampler(0.5, 16, 0.25)([torch.cat([near, far])], [truth])
    assert len(samples.boxes[0]) == 16
    assert 1 <= int((samples.labels[0] > 0).sum()) <= 4
    everything = ProposalSampler(0.5, 1000, 1.0)([far], [truth])
    assert everything.labels[0].tolist().count(1) == 1
    assert everything.labels[0].tolist().count(2) == 1
    assert torch.equal(everything.positive().boxes[0], truth["boxes"])


def test_an_image_without_objects_trains_only_the_background() -> None:
    model = detector().train()
    losses = model([as_tensor(picture(64, 64))], [rectangles(64, 64, [], [])])
    losses = {name: value.detach() for name, value in losses.items()}
    assert float(losses["loss_box_reg"]) == float(losses["loss_mask"]) == float(losses["loss_rpn_box_reg"]) == 0
    assert float(losses["loss_objectness"]) > 0
    assert float(losses["loss_classifier"]) > 0


def test_losses_come_unweighted_and_the_weights_lie_beside_them() -> None:
    plain, weighted = detector(), detector(loss_weights={"loss_mask": 3.0})
    weighted.load_state_dict(plain.state_dict())
    batch, targets = [as_tensor(picture(64, 64))], [rectangles(64, 64, [[10, 10, 40, 40]], [1])]
    torch.manual_seed(1)
    first = plain.train()(batch, targets)
    torch.manual_seed(1)
    second = weighted.train()(batch, targets)
    assert torch.equal(first["loss_mask"], second["loss_mask"])
    assert weighted.loss_weights["loss_mask"] == 3.0
    assert plain.loss_weights["loss_mask"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[10.0, 10, 5, 20]])}, "x1 < x2"),
        ({"boxes": torch.zeros(1, 5)}, r"\(n, 4\)"),
        ({"labels": torch.tensor([9])}, r"1 \.\. 3"),
        ({"labels": torch.tensor([0])}, r"1 \.\. 3"),
        ({"labels": torch.tensor([1.0])}, "long"),
        ({"masks": torch.zeros(2, 64, 64)}, "masks must be"),
    ],
)
def test_malformed_targets_are_refused_by_name(change: dict[str, torch.Tensor], message: str) -> None:
    good = rectangles(64, 64, [[10, 10, 40, 40]], [1])
    with pytest.raises(TargetError, match=message):
        detector()([as_tensor(picture(64, 64))], [{**good, **change}])


def test_training_without_targets_or_masks_says_what_is_missing() -> None:
    image = [as_tensor(picture(64, 64))]
    with pytest.raises(TargetError, match="predict"):
        detector()(image)
    target = rectangles(64, 64, [[10, 10, 40, 40]], [1])
    del target["masks"]
    with pytest.raises(TargetError, match="masks"):
        detector().train()(image, [target])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rpn": {"name": "rpn", "anchor_sizes": [[8]]}}, "anchor_sizes"),
        ({"heads": {"box": None}}, "'box'"),
        ({"sampler": {"per_picture": 3}}, "sampler"),
        ({"transform": {"minimum": 3}}, "minimum"),
        ({"heads": {"box": {"name": "box_head", "fc_channels": [64]}}}, "fc_channels"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detector(**changes)


def test_a_class_agnostic_mask_head_and_a_convolutional_box_head_train() -> None:
    heads = {
        "box": {"name": "box_head", "conv_channels": [16], "fc_channels": [32], "norm": "group"},
        "mask": {"name": "mask_head", "channels": [16], "predictor_channels": 16, "class_agnostic": True},
    }
    model = detector(heads=heads).train()
    sum(model([as_tensor(picture(64, 64))], [rectangles(64, 64, [[10, 10, 40, 40]], [2])]).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = model.eval().predict([as_tensor(picture(50, 60))])[0]
    assert found.masks.shape[1:] == (28, 28)


def test_it_learns_to_find_a_square() -> None:
    torch.manual_seed(0)
    backbone = {"name": "slim_resnet", "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "norm": "batch"}
    model = detector(backbone=backbone).train()
    image = torch.full((3, 64, 64), 0.1)
    image[0, 16:44, 20:48] = 0.9
    target = rectangles(64, 64, [[20, 16, 48, 44]], [3])
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        loss = sum(model([image, image.flip(0)], [target, target]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    best = model.eval().predict([image])[0].finish()
    assert best.labels[0] == 3
    assert best.scores[0] > 0.8
    assert np.abs(best.boxes_xyxy[0] - [20, 16, 48, 44]).max() < 4
    assert best.rles is not None
    truth = target["masks"][0].numpy() > 0
    found = decode(best.rles[0], (64, 64))
    assert (truth & found).sum() / (truth | found).sum() > 0.8


def test_the_focal_factor_of_the_box_head_is_that_of_lin_2017_and_0_is_plain_cross_entropy() -> None:
    neck, draws = small_neck(), torch.Generator().manual_seed(3)
    logits, labels = torch.randn(4, 3, generator=draws), torch.tensor([0, 2, 1, 0])
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
    samples = Samples([torch.tensor([[0.0, 0, 8, 8]] * 4)], [labels], [torch.zeros(4, dtype=torch.int64)], [target])
    raw = {"class_logits": logits, "box_deltas": torch.zeros(4, 12)}
    p = logits.softmax(1)[torch.arange(4), labels]
    for focal in (0.0, 2.0):
        head = BoxHead(neck, 3, fc_channels=[8, 8], focal=focal)
        expected = (-((1 - p) ** focal) * p.log()).mean()
        assert float(head.loss(raw, samples)["loss_classifier"]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ConfigError, match="focal"):
        BoxHead(neck, 3, fc_channels=[8, 8], focal=-1.0)
