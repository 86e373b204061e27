"""Mean IoU and pixel accuracy on hand cases."""

from __future__ import annotations

import numpy as np
import pytest

from modelkit.metrics import SemanticQuality
from modelkit.metrics.semantic import near_border


def test_a_hand_case() -> None:
    """Class 0: 2 right of a union of 3; class 1: 1 of 3; class 2: 1 of 2; one pixel is ignored."""
    quality = SemanticQuality(4)
    quality.add(np.array([[0, 0, 1, 1], [2, 2, 255, 1]]), np.array([[0, 0, 0, 1], [2, 1, 3, 1]]))
    scores = quality.scores()
    assert scores.by_class == pytest.approx({0: 2 / 3, 1: 2 / 4, 2: 1 / 2})
    assert scores.miou == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert scores.pixel_accuracy == pytest.approx(5 / 7)
    assert scores.num_pixels == 7
    assert quality.confusion.tolist() == [[2, 0, 0, 0], [1, 2, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_random_images_equal_sets_of_pixels_class_by_class() -> None:
    """Over all images together, by their definition: pixels of both over pixels of either."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        quality, true, found = SemanticQuality(6), [], []
        for _ in range(4):
            height, width = rng.integers(1, 20, 2)
            truth, predicted = rng.choice([0, 1, 3, 4, 255], (height, width)), rng.integers(0, 6, (height, width))
            quality.add(truth, predicted)
            true.append(truth[truth != 255])
            found.append(predicted[truth != 255])
        a, b = np.concatenate(true), np.concatenate(found)
        sets = {k: (set(np.flatnonzero(a == k)), set(np.flatnonzero(b == k))) for k in range(6)}
        wanted = {k: len(x & y) / len(x | y) for k, (x, y) in sets.items() if x | y}
        assert quality.scores().by_class == pytest.approx(wanted)
        assert quality.scores().miou == pytest.approx(np.mean(list(wanted.values())))
        assert quality.scores().pixel_accuracy == pytest.approx((a == b).mean())


def test_images_add_up_and_are_not_averaged() -> None:
    one, two = SemanticQuality(2), SemanticQuality(2)
    big, small = np.zeros((10, 10), int), np.ones((1, 2), int)
    one.add(big, big)
    one.add(small, np.array([[0, 1]]))
    together = np.concatenate([big.ravel(), small.ravel()])[None]
    two.add(together, np.concatenate([big.ravel(), [0, 1]])[None])
    assert one.scores() == two.scores()
    assert one.scores().by_class == pytest.approx({0: 100 / 101, 1: 1 / 2})


def test_a_class_that_only_the_prediction_has_counts_as_zero_and_one_that_nobody_has_not_at_all() -> None:
    quality = SemanticQuality(5)
    quality.add(np.zeros((1, 2), int), np.array([[0, 3]]))
    assert quality.scores().by_class == {0: 0.5, 3: 0.0}
    assert SemanticQuality(5).scores().miou == 0.0


def test_what_cannot_be_counted_is_refused() -> None:
    quality = SemanticQuality(2)
    with pytest.raises(ValueError, match="one shape"):
        quality.add(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"prediction holds ids 0 \.\. 2"):
        quality.add(np.zeros((1, 2), int), np.array([[0, 2]]))
    quality.add(np.full((1, 1), 255), np.array([[9]]))
    assert quality.scores().num_pixels == 0


def test_near_borders_only_a_band_on_both_sides_of_each_change_counts() -> None:
    truth, predicted = np.zeros((3, 10), int), np.zeros((3, 10), int)
    truth[:, 6:] = 1
    predicted[:, 7:] = 1  # the outline lies one pixel off
    for border_px, counted, right in ((1, 2, 1), (2, 4, 3), (100, 10, 9)):
        quality = SemanticQuality(2, border_px=border_px)
        quality.add(truth, predicted)
        assert quality.scores().num_pixels == 3 * counted
        assert quality.scores().pixel_accuracy == pytest.approx(right / counted)
    everywhere = SemanticQuality(2)
    everywhere.add(truth, predicted)
    assert quality.scores() == everywhere.scores(), "a band that covers everything changes nothing"


def test_near_borders_corners_are_round_and_ignored_pixels_make_borders_but_do_not_count() -> None:
    truth = np.zeros((9, 9), int)
    truth[4, 4] = 255
    assert near_border(truth, 1).sum() == 1 + 4
    assert near_border(truth, 2).sum() == 1 + 4 + 8
    quality = SemanticQuality(2, border_px=1)
    quality.add(truth, truth)
    assert quality.scores().num_pixels == 4
    assert not near_border(np.ones((4, 4), int), 5).any(), "without a change there is no border"
    with pytest.raises(ValueError, match="at least 1"):
        SemanticQuality(2, border_px=0)
