"""A model's disagreement becomes a probability that means what it says, and no label is believed for its own sake."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from infra.errors import DatasetError, UsageError
from modelkit import ClassInfo
from tasks.evaluation.suspects import FOLDS, check_finds_suspects, doubts, folds_of
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set

COUNT = 20_000


def labels(groups: list[str]) -> LabelSet:
    thing = (LabelledObject(1, None, (0, 0, 5, 5)),)
    items = [LabelledItem(f"{k:03d}", (9, 9), thing, group_id=group) for k, group in enumerate(groups)]
    return make_label_set(items, [ClassInfo(1, "thing")], origin_format="test")


def looked_at(wrong_share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How sure a model is, whether it agrees, and whether the label is wrong: the surer the model, the righter."""
    rng = np.random.default_rng(seed)
    sure = rng.random(COUNT)
    model_is_wrong, label_is_wrong = rng.random(COUNT) > 1 - 0.4 * (1 - sure) ** 2, rng.random(COUNT) < wrong_share
    return sure, ~(model_is_wrong | label_is_wrong), label_is_wrong


@pytest.mark.parametrize("wrong_share", [0.02, 0.05, 0.15])
def test_of_labels_that_are_doubted_as_many_are_wrong_as_is_said(wrong_share: float) -> None:
    sure, agrees, is_wrong = looked_at(wrong_share, seed=3)
    found = doubts(sure, agrees.astype(float), (1.0,), np.arange(COUNT) % FOLDS)
    assert (found[agrees] == 0).all()
    edges = np.quantile(found[~agrees], np.linspace(0, 1, 5))
    for low, high in pairwise(edges):
        here = ~agrees & (found >= low) & (found <= high)
        assert found[here].mean() == pytest.approx(is_wrong[here].mean(), abs=0.12)
    assert found.sum() == pytest.approx(is_wrong.sum(), rel=0.25), "an unspoilt share of wrong labels is estimated"


def test_where_nothing_is_wrong_few_labels_are_expected_to_be() -> None:
    sure, agrees, _ = looked_at(0.0, seed=5)
    found = doubts(sure, agrees.astype(float), (1.0,), np.arange(COUNT) % FOLDS)
    assert (~agrees).sum() > 1_000 and found.sum() < 0.02 * COUNT


def test_what_a_part_of_the_pictures_says_has_no_say_in_its_own_probabilities() -> None:
    sure, agrees, _ = looked_at(0.05, seed=7)
    folds = np.arange(COUNT) % FOLDS
    mine = (folds == 2) & ~agrees
    spoilt = agrees & (folds != 2)  # all that agreed in this part now disagree
    before, after = (doubts(sure, each.astype(float), (1.0,), folds) for each in (agrees, spoilt))
    assert (before[mine] == after[mine]).all()
    assert (before[~mine & ~agrees] != after[~mine & ~agrees]).any()


def test_the_farther_the_two_are_apart_the_more_doubtful_is_the_label() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(COUNT)
    agreement = np.where(rng.random(COUNT) < 0.2 * (1 - sure), rng.random(COUNT), 1.0)  # a model is off somehow ...
    agreement[rng.random(COUNT) < 0.02] = 0.0  # ... and labels that are off altogether
    found = doubts(sure, agreement, (0.9, 0.5, 0.01), np.arange(COUNT) % FOLDS)
    means = [
        found[(agreement >= low) & (agreement < high)].mean() for low, high in ((0, 0.01), (0.01, 0.5), (0.5, 0.9))
    ]
    assert means[0] > means[1] > means[2] > 0


def test_parts_keep_groups_together_and_a_single_image_is_refused() -> None:
    groups = [f"g{k // 3}" for k in range(30)]
    parts = folds_of(labels(groups))
    assert len(set(parts.tolist())) == FOLDS
    assert all(len({int(parts[k]) for k in range(30) if groups[k] == each}) == 1 for each in groups)
    assert sorted(set(folds_of(labels(["video"] * 7)).tolist())) == list(range(FOLDS)), "frames of the only video"
    with pytest.raises(DatasetError, match="cannot be told from one image"):
        folds_of(labels(["g"]))


def test_a_kind_that_finds_no_suspects_is_refused_with_those_that_do() -> None:
    check_finds_suspects("instance")
    with pytest.raises(UsageError, match="not found by models of the kind semantic") as refused:
        check_finds_suspects("semantic")
    assert "detection, instance, keypoints" in str(refused.value.hint)
