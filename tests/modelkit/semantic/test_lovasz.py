"""Lovasz-softmax against the definition of the extension, computed another way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from modelkit import create_model
from modelkit.semantic.lovasz import lovasz_softmax


def jaccard_loss(truth: np.ndarray, wrong: np.ndarray) -> float:
    """1 - IoU of a class when exactly the pixels of ``wrong`` are classified wrongly."""
    predicted = truth ^ wrong
    return 1 - (truth & predicted).sum() / (truth | predicted).sum()


def extension(truth: np.ndarray, errors: np.ndarray) -> float:
    """The Lovasz extension as the integral of the set function over the level sets of the errors (Lovasz 1983)."""
    levels = np.unique(np.concatenate([[0.0], errors]))
    return float(sum((high - low) * jaccard_loss(truth, errors > low) for low, high in itertools.pairwise(levels)))


def brute_force(probabilities: torch.Tensor, wanted: torch.Tensor, first_class: int) -> float:
    labelled = (wanted != 255).numpy().ravel()
    flat = probabilities.double().movedim(1, -1).reshape(-1, probabilities.shape[1]).numpy()[labelled]
    truth = wanted.numpy().ravel()[labelled]
    losses = [
        extension(truth == label, np.abs((truth == label) - flat[:, label]))
        for label in range(first_class, flat.shape[1])
        if (truth == label).any()
    ]
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("first_class", [0, 1])
def test_it_is_the_mean_over_classes_of_the_lovasz_extension_of_one_minus_iou(first_class: int) -> None:
    draws = torch.Generator().manual_seed(1)
    for size in ((1, 1), (2, 3), (5, 4)):
        for _ in range(10):
            logits = torch.randn(2, 4, *size, generator=draws, dtype=torch.float64)
            wanted = torch.randint(0, 5, (2, *size), generator=draws)
            wanted[wanted == 4] = 255
            found = float(lovasz_softmax(logits.softmax(1), wanted, first_class))
            assert found == pytest.approx(brute_force(logits.softmax(1), wanted, first_class), abs=1e-9)


def test_of_certain_answers_it_is_one_minus_their_mean_iou() -> None:
    wanted = torch.tensor([[[0, 0, 1], [1, 1, 255]]])
    answer = torch.tensor([[[0, 1, 1], [1, 1, 0]]])
    certain = torch.nn.functional.one_hot(answer, 3).movedim(-1, 1).float()
    assert float(lovasz_softmax(certain, wanted)) == pytest.approx(1 - (1 / 2 + 3 / 4) / 2)


def test_ignored_pixels_give_no_gradient_and_nothing_labelled_gives_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    wanted = torch.tensor([[[0, 255], [2, 255]]])
    lovasz_softmax(logits.softmax(1), wanted).backward()
    assert logits.grad is not None
    assert not logits.grad[..., 1].any() and logits.grad[..., 0].any()
    nothing = lovasz_softmax(logits.softmax(1), torch.full_like(wanted, 255))
    assert float(nothing.detach()) == 0 and nothing.requires_grad


def test_a_recipe_asks_for_it_by_weight() -> None:
    model = create_model(
        "unet",
        num_classes=3,
        backbone={"widths": [4, 8]},
        losses={"lovasz": 0.5},
        transform={"min_size": 32, "max_size": 32},
    )
    losses = model([torch.rand(3, 32, 32)], [{"semantic": torch.randint(0, 3, (32, 32))}])
    assert model.loss_weights["loss_lovasz"] == 0.5
    assert 0 < float(losses["loss_lovasz"].detach()) < 1
