"""Losses of semantic models on hand cases (models.md 9)."""

from __future__ import annotations

import math

import pytest
import torch

from modelkit import ConfigError
from modelkit.semantic.losses import (
    LossConfig,
    border_weight_map,
    border_weights,
    dice_loss,
    pixel_loss,
    without_abstaining,
)


def test_golden_dice() -> None:
    """p = [.5, .5] against t = [1, 0]: one half."""
    probabilities = torch.full((1, 2, 1, 2), 0.5)
    wanted = torch.tensor([[[1, 0]]])
    assert float(dice_loss(probabilities, wanted, first_class=1)) == pytest.approx(0.5, abs=1e-6)
    assert float(dice_loss(probabilities, wanted)) == pytest.approx(0.5, abs=1e-6)


def test_dice_is_zero_when_right_one_when_wrong_and_zero_when_nothing_is_there() -> None:
    wanted = torch.tensor([[[0, 1, 2]]])
    right = torch.nn.functional.one_hot(wanted, 3).movedim(-1, 1).float()
    assert float(dice_loss(right, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(right.roll(1, dims=1), wanted)) == pytest.approx(1, abs=1e-5)
    nothing = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 2, 2)
    assert float(dice_loss(nothing, torch.zeros(1, 2, 2, dtype=torch.int64), first_class=1)) == pytest.approx(0)


def test_ignored_pixels_count_for_nothing() -> None:
    probabilities = torch.tensor([[0.9, 0.2], [0.1, 0.8]])[None, :, None, :]
    seen, half = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 255]]])
    assert float(dice_loss(probabilities, half)) == pytest.approx(
        float(dice_loss(probabilities[..., :1], seen[..., :1]))
    )


def test_golden_border_weights() -> None:
    """w_c = 1: 11 where both objects touch, 2.3533528 where their distances sum to ten pixels."""
    distances = torch.tensor([0.0, 4.0, 5.0])
    weights = 1 + border_weights(distances, torch.tensor([0.0, 6.0, 5.0]))
    assert weights.tolist() == pytest.approx([11.0, 2.3533528, 2.3533528], abs=1e-5)


def test_the_gap_between_two_objects_weighs_most_and_objects_keep_their_weight() -> None:
    masks = torch.zeros(2, 9, 12, dtype=torch.uint8)
    masks[0, :, :3], masks[1, :, 6:] = 1, 1
    weights = border_weight_map(masks)
    assert weights[4].tolist()[:3] == [1, 1, 1]
    expected = 1 + 10 * math.exp(-((1 + 3) ** 2) / 50)
    assert weights[4, 3:6].tolist() == pytest.approx([expected] * 3, abs=1e-5)
    assert border_weight_map(masks[:1]).unique().tolist() == [1]
    assert border_weight_map(torch.zeros(0, 4, 5)).shape == (4, 5)


def test_an_object_that_cannot_be_seen_is_infinitely_far_away() -> None:
    masks = torch.zeros(2, 6, 6, dtype=torch.uint8)
    masks[0, 2:4, 2:4] = 1
    assert border_weight_map(masks).unique().tolist() == [1]


def test_pixel_weights_multiply_the_cross_entropy() -> None:
    logits, wanted = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    weights = torch.tensor([[[1.0, 3.0]]])
    assert float(pixel_loss(logits, wanted, weights)) == pytest.approx(2 * math.log(2))
    assert float(pixel_loss(logits, wanted, weights, LossConfig(reduction="sum"))) == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize(
    "options",
    [
        {"dice": -1.0},
        {"reduction": "none"},
        {"border_sigma": 0.0},
        {"focal": -1.0},
        {"hardest": 0.0},
        {"lovasz": -1.0},
        {"class_weights": [1.0, -1.0]},
        {"unheard_of": 1.0},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="losses"):
        LossConfig.from_config(options)


def test_dice_by_class_gives_a_rare_class_as_much_weight_as_a_frequent_one() -> None:
    """99 pixels right and one wrong: over all pixels 0.01, by class the mean of nearly nothing and one."""
    wanted = torch.zeros(1, 10, 10, dtype=torch.int64)
    wanted[0, 0, 0] = 1
    missed = torch.nn.functional.one_hot(torch.zeros_like(wanted), 3).movedim(-1, 1).float()
    assert float(dice_loss(missed, wanted)) == pytest.approx(0.01, abs=1e-6)
    frequent = 1 - 2 * 99 / 199
    assert float(dice_loss(missed, wanted, by_class=True)) == pytest.approx((frequent + 1) / 2, abs=1e-6)
    assert float(dice_loss(missed, torch.full_like(wanted, 255), by_class=True)) == 0


def test_class_weights_multiply_the_cross_entropy_and_void_keeps_none() -> None:
    logits, wanted = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]])
    loss = pixel_loss(logits, wanted, None, LossConfig(class_weights=[1.0, 3.0]))
    assert float(loss) == pytest.approx(2 * math.log(2))
    twice = pixel_loss(logits, wanted, torch.full((1, 1, 3), 2.0), LossConfig(class_weights=[1.0, 3.0]))
    assert float(twice) == pytest.approx(4 * math.log(2))


def test_a_class_of_which_nothing_is_said_is_not_unlearnt_where_another_one_is_taught() -> None:
    logits = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = torch.zeros((2, 4, 4), dtype=torch.int64)
    wanted[0, 0] = 2  # labelled all the same: it counts
    told = without_abstaining(logits, wanted, [torch.tensor([2]), ()])
    pixel_loss(told, wanted).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 2, 1:] == 0).all() and (logits.grad[0, 2, 0] != 0).all() and (logits.grad[1, 2] != 0).all()
    rest = logits.detach()[0, :2, 1:].softmax(0)
    assert torch.allclose(told.detach().softmax(1)[0, :2, 1:], rest), "the others share the probability"


def test_certified_background_teaches_that_no_class_is_there_whoever_abstains() -> None:
    logits = torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = torch.ones((1, 4, 4), dtype=torch.int64)
    wanted[0, :2] = 0
    pixel_loss(without_abstaining(logits, wanted, [[2]], background=0), wanted).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 2, :2] != 0).all() and (logits.grad[0, 2, 2:] == 0).all()


def test_without_a_class_that_abstains_logits_stay_as_they_are() -> None:
    logits = torch.zeros((1, 3, 2, 2))
    assert without_abstaining(logits, torch.zeros((1, 4, 4), dtype=torch.int64), [()]) is logits


def test_the_focal_factor_is_that_of_lin_2017() -> None:
    logits, wanted = torch.tensor([2.0, 0.0])[None, :, None, None], torch.tensor([[[0]]])
    p = math.exp(2) / (math.exp(2) + 1)
    assert float(pixel_loss(logits, wanted, None, LossConfig(focal=2.0))) == pytest.approx(
        -((1 - p) ** 2) * math.log(p), rel=1e-5
    )


def test_only_the_hardest_share_of_the_labelled_pixels_counts() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0, -4.0], [0.0, 0.0, 0.0, 0.0]])[None, :, None, :].requires_grad_()
    wanted = torch.tensor([[[0, 0, 255, 0]]])
    loss = pixel_loss(logits, wanted, None, LossConfig(hardest=0.34))
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(4)))
    loss.backward()
    assert logits.grad is not None and logits.grad[0, :, 0].abs().sum(0).nonzero().flatten().tolist() == [3]


def test_older_records_do_not_change_by_options_that_they_do_not_know() -> None:
    assert set(LossConfig().to_config()) == {"reduction", "background", "dice", "border", "border_sigma"}
    used = LossConfig(dice_by_class=True, class_weights=[1.0, 2.0], focal=2.0, hardest=0.5, lovasz=1.0)
    assert LossConfig.from_config(used.to_config()) == used
