"""Priors, their code, matching, suppression, masks and losses of one-stage detectors, on cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import nms

from modelkit import ConfigError, TargetError, create_model
from modelkit.onestage.losses import boxes_to_grid, classification_loss, mask_loss, semantic_loss, shrink_masks
from modelkit.onestage.masks import assemble_masks, crop_window
from modelkit.onestage.matching import NEUTRAL, SSDMatcher
from modelkit.onestage.priors import corners, decode_boxes, encode_boxes, prior_boxes
from modelkit.onestage.suppression import fast_nms
from tests.modelkit.builders import small_yolact

CPU = torch.device("cpu")
CHAIN = torch.tensor(
    [[0.0, 0, 10, 10], [0, 2.5, 10, 12.5], [0, 5, 10, 15]]
)  # neighbours overlap by .6, the ends by 1/3


def test_yolact_has_19248_priors_at_550_pixels() -> None:
    scales = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    priors = prior_boxes((550, 550), (8, 16, 32, 64, 128), scales, (1.0, 0.5, 2.0), True, CPU)
    assert priors.shape == (19_248, 4)
    cell = 550 / 69
    assert torch.allclose(priors[:3, :2], torch.tensor(cell / 2))
    assert torch.allclose(priors[:3, 2], 24 * torch.tensor([1.0, 0.5, 2.0]).sqrt())
    assert torch.equal(priors[:, 2], priors[:, 3])


def test_priors_that_are_not_square_keep_their_area() -> None:
    priors = prior_boxes((64, 96), (32,), ((32.0,),), (1.0, 0.5, 2.0), False, CPU)
    assert len(priors) == 2 * 3 * 3
    assert torch.allclose(priors[:, 2] * priors[:, 3], torch.tensor(1024.0))
    assert torch.allclose(priors[:3, 2] / priors[:3, 3], torch.tensor([1.0, 0.5, 2.0]))


def test_the_ssd_code_is_the_known_one_and_equals_the_rcnn_code_with_weights_10_10_5_5() -> None:
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.4, 0.3, 0.7, 0.7]])
    code = encode_boxes(box, prior)
    assert code[0].tolist() == pytest.approx([2.5, 0, 2.0273, 0], abs=1e-4)
    assert torch.allclose(decode_boxes(code, prior), box)
    rcnn = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(box, corners(prior))
    assert torch.allclose(code, rcnn, atol=1e-5)


def match(boxes: list[list[float]], priors: list[list[float]], **target: Any) -> tuple[list[int], list[int]]:
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(1, len(boxes) + 1), **target}
    labels, matched = SSDMatcher(0.5, 0.4, 0.7)(torch.tensor(priors), found)
    return labels.tolist(), matched.tolist()


def test_priors_are_positive_neutral_or_background_by_iou() -> None:
    priors = [[0.0, 0, 10, 10], [0, 0, 10, 5.2], [0, 0, 10, 4.5], [0, 0, 10, 3.9], [50, 50, 60, 60]]
    assert match([[0.0, 0, 10, 10]], priors)[0] == [1, 1, NEUTRAL, 0, 0]


def test_every_object_gets_a_prior_of_its_own_the_most_certain_pair_first() -> None:
    priors = [[0.0, 0, 10, 10], [0, 0, 10, 8]]
    labels, matched = match([[0.0, 0, 10, 9], [0, 0, 10, 10]], priors)
    assert (labels, matched) == ([2, 1], [1, 0])  # both like prior 0 best; the second fits it wholly
    far = match([[0.0, 0, 10, 10], [90, 90, 99, 99]], [[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert far == ([1, 2], [0, 1])  # without any overlap it still gets one


def test_priors_inside_a_crowd_are_neutral_unless_they_are_positive() -> None:
    priors = [[0.0, 0, 10, 10], [20, 20, 30, 30], [28, 28, 38, 38]]
    boxes = [[0.0, 0, 30, 30], [0, 0, 10, 10]]
    labels, _ = match(boxes, priors, iscrowd=torch.tensor([True, False]))
    assert labels == [2, NEUTRAL, 0]
    assert match([[0.0, 0, 30, 30]], priors, iscrowd=torch.tensor([True]))[0] == [NEUTRAL, NEUTRAL, 0]
    assert match([], priors)[0] == [0, 0, 0]


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="negative_iou"):
        SSDMatcher(0.4, 0.5)


def test_fast_nms_lets_suppressed_boxes_suppress_where_the_classic_rule_does_not() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert fast_nms(CHAIN, scores[None], 0.5)[0].tolist() == [0]
    assert nms(CHAIN, scores, 0.5).tolist() == [0, 2]


def test_fast_nms_works_class_by_class_and_returns_the_best_first() -> None:
    scores = torch.tensor([[0.2, 0.1, 0.6], [0.5, 0.05, 0.55]])
    index, label, score = fast_nms(CHAIN, scores, 0.5)
    assert list(zip(index.tolist(), label.tolist(), strict=True)) == [(2, 0), (2, 1), (0, 1), (0, 0)]
    assert score.tolist() == pytest.approx([0.6, 0.55, 0.5, 0.2])
    assert [len(each) for each in fast_nms(CHAIN, scores, 0.5, keep=2)] == [2, 2, 2]
    assert [len(each) for each in fast_nms(CHAIN[:0], scores[:, :0])] == [0, 0, 0]


def test_a_one_hot_coefficient_gives_the_sigmoid_of_its_prototype_cropped() -> None:
    prototypes = torch.randn(4, 12, 16).relu()
    mask = assemble_masks(prototypes, torch.tensor([[0.0, 1, 0, 0]]), torch.tensor([[4.0, 3, 9, 8]]))[0]
    inside = torch.zeros(12, 16, dtype=torch.bool)
    inside[2:9, 3:10] = True  # a cell wider on every side
    assert torch.equal(mask, prototypes[1].sigmoid() * inside)


def test_a_negative_coefficient_subtracts_a_prototype() -> None:
    whole, hole = torch.ones(8, 8) * 4, torch.zeros(8, 8)
    hole[2:6, 2:6] = 8
    mask = assemble_masks(torch.stack([whole, hole]), torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 0, 8, 8]]))[0]
    assert torch.equal(mask > 0.5, hole == 0)


def test_crop_windows_are_clipped_to_the_grid_and_count_cells_by_their_index() -> None:
    window = crop_window(torch.tensor([[-3.0, 1.5, 2.5, 30]]), (6, 5))[0]
    expected = torch.zeros(6, 5, dtype=torch.bool)
    expected[1:, :4] = True  # rows from .5 on, columns below 3.5
    assert torch.equal(window, expected)


def test_the_class_loss_at_zero_logits_is_ln_81_for_every_selected_prior() -> None:
    labels = torch.zeros(2, 40, dtype=torch.int64)
    labels[0, :3] = torch.tensor([5, 7, 80])
    labels[0, 3:6] = NEUTRAL
    loss = classification_loss(torch.zeros(2, 40, 81), labels, 3)
    assert float(loss) == pytest.approx(math.log(81) * 4, rel=1e-5)  # three positives, nine negatives, over three
    assert math.log(81) == pytest.approx(4.394449)


def test_the_hardest_negatives_are_taken_and_neutral_priors_never() -> None:
    logits = torch.zeros(1, 5, 3)
    logits[0, 0, 1] = 20.0  # the positive, sure
    logits[0, 1, 0] = 20.0  # easy background
    logits[0, 2, 2] = 3.0  # hardest
    logits[0, 3, 2] = 9.0  # neutral
    loss = classification_loss(logits, torch.tensor([[1, 0, 0, NEUTRAL, 0]]), 1)
    assert float(loss) == pytest.approx(math.log(2 + math.exp(3.0)), rel=1e-5)


def whole_image_mask(boxes: list[list[float]], zeros: int = 2) -> tuple[Any, ...]:
    target = {"boxes": torch.tensor(boxes), "masks": torch.ones(1, 32, 32, dtype=torch.uint8)}
    labels = torch.tensor([[1, 0, 0]])
    return torch.zeros(1, zeros, 16, 16), torch.zeros(1, 3, zeros), labels, torch.zeros_like(labels), [target], (32, 32)


def test_the_mask_loss_at_zero_logits_is_ln_2_and_weighs_4_2455() -> None:
    loss = mask_loss(*whole_image_mask([[0.0, 0, 32, 32]]), at_most=100)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
    weights = create_model("yolact", **small_yolact()).loss_weights
    assert float(loss) * weights["loss_mask"] == pytest.approx(4.245527, rel=1e-6)


def test_the_mask_loss_divides_by_the_box_not_by_the_wider_window() -> None:
    loss = mask_loss(*whole_image_mask([[8.0, 8, 24, 24]]), at_most=100)  # 8 x 8 cells, window of 10 x 10
    assert float(loss) == pytest.approx(math.log(2) * 100 / 64, rel=1e-6)


def test_a_sample_of_the_masks_is_scaled_up_to_all_of_them() -> None:
    prototypes, _, _, _, targets, padded = whole_image_mask([[0.0, 0, 32, 32]])
    labels = torch.ones(1, 6, dtype=torch.int64)
    coefficients = torch.zeros(1, 6, 2)
    loss = mask_loss(prototypes, coefficients, labels, torch.zeros_like(labels), targets, padded, at_most=2)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)


def test_the_semantic_loss_is_a_mean_over_cells_and_a_sum_over_classes() -> None:
    target = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.tensor([2, 2]),
        "masks": torch.zeros(2, 8, 8, dtype=torch.uint8),
    }
    target["masks"][0, :4] = 1
    target["masks"][1, 2:6] = 1
    assert float(semantic_loss(torch.zeros(2, 3, 4, 4), [target, target], (8, 8))) == pytest.approx(3 * math.log(2))
    sure = torch.full((1, 3, 4, 4), -40.0)
    sure[0, 1, :3] = 40.0  # the union of both masks, in the channel of label 2
    assert float(semantic_loss(sure, [target], (8, 8))) == pytest.approx(0, abs=1e-6)
    crowd = {**target, "iscrowd": torch.tensor([True, True])}
    assert float(semantic_loss(torch.full((1, 3, 4, 4), -40.0), [crowd], (8, 8))) == pytest.approx(0, abs=1e-6)


def test_target_masks_shrink_onto_the_grid_that_covers_the_padding_too() -> None:
    small = shrink_masks(torch.ones(1, 8, 6, dtype=torch.uint8), (8, 8), (4, 4))[0]
    assert small.tolist() == [[1, 1, 1, 0]] * 4
    grid = torch.zeros(4, 2)
    assert boxes_to_grid(torch.tensor([[4.0, 2, 8, 8]]), (8, 8), grid).tolist() == [[1.0, 1.0, 2.0, 4.0]]


def test_targets_with_objects_but_without_masks_are_refused() -> None:
    model = create_model("yolact", **small_yolact())
    target = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1])}
    with pytest.raises(TargetError, match="masks"):
        model([torch.rand(3, 20, 20)], [target])
    with pytest.raises(TargetError, match="predict"):
        model([torch.rand(3, 20, 20)])


def test_anchor_scales_must_fit_the_maps() -> None:
    with pytest.raises(ConfigError, match="anchor_scales"):
        create_model("yolact", **small_yolact(head={"anchor_scales": [[8], [16]]}))
