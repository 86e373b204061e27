"""Heartbeats see a loop that goes wrong, and leave a healthy one alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from tasks.loop.heartbeats import (
    MAX_ENTROPY_FACTOR,
    MAX_LOSS_RATIO,
    entropy_heartbeat,
    loss_heartbeat,
    losses_by_kind,
    prediction_entropy,
)
from tests.tasks.loop.rows import candidate, candidates


def history(unlabelled: Sequence[float], supervised: float = 2.0) -> list[dict[str, float]]:
    """A curve with two losses of people's labels, and one of machines' that may be silent (0)."""
    points = []
    for step, value in enumerate(unlabelled, start=1):
        point = {"step": 10 * step, "loss_a": supervised / 4, "loss_b": 3 * supervised / 4, "norm": 9.0, "rate": 0.1}
        points.append(point | ({"unlabelled_loss_a": value} if value else {}))
    return points


def objects(scores: Sequence[float]) -> pa.Table:
    return candidates([candidate(f"i{k}", 0, score, [0, 0, 9, 9]) for k, score in enumerate(scores)])


def pixels(levels: Sequence[tuple[float, int]]) -> pa.Table:
    """(level, rows of the region)"""
    return candidates(
        [candidate("i", k, level, [0, 0, 10, rows], kind="semantic") for k, (level, rows) in enumerate(levels)]
    )


def test_curves_are_summed_by_kind_of_labels() -> None:
    assert losses_by_kind(history([0, 1.5])) == {
        "labelled": [(10, 2.0), (20, 2.0)],
        "unlabelled": [(20, 1.5)],
    }


def test_a_student_that_learns_from_both_is_healthy_and_one_at_the_cap_is_not() -> None:
    healthy = loss_heartbeat(history([0, 0.5, 1.0, 1.4, 1.6, 1.4, 0]))
    assert healthy.passed and healthy.value == pytest.approx(1.4667 / 2, abs=1e-3), "the later half of where it counted"
    collapsed = loss_heartbeat(history([0, 0.5, 1.0, 3.9, 4.0, 4.0, 0]))
    assert not collapsed.passed and (collapsed.value or 0) > MAX_LOSS_RATIO
    early = loss_heartbeat(history([4.0, 4.0, 4.0, 1.0, 1.0, 1.0]))
    assert early.passed, "a rough start that was overcome"


def test_what_was_never_trained_on_pseudo_labels_cannot_be_measured() -> None:
    for curve in ([], history([0, 0, 0])):
        found = loss_heartbeat(curve)
        assert found.value is None and not found.passed and "no recorded step" in found.reason


def test_entropy_of_objects_is_that_of_their_scores() -> None:
    assert prediction_entropy(objects([0.5, 0.5])) == pytest.approx(1.0)
    assert prediction_entropy(objects([1.0, 0.5])) == pytest.approx(0.5)
    assert (
        prediction_entropy(objects([0.11])) == prediction_entropy(objects([0.89])) == pytest.approx(0.49992, abs=1e-4)
    )
    assert prediction_entropy(candidates([])) is None


def test_entropy_of_pixels_counts_pixels_and_doubts_most_below_a_half() -> None:
    assert prediction_entropy(pixels([(0.0, 5)])) == prediction_entropy(pixels([(0.5, 5)])) == pytest.approx(1.0)
    sure = prediction_entropy(pixels([(0.995, 5)])) or 0
    assert prediction_entropy(pixels([(0.5, 1), (0.995, 9)])) == pytest.approx(0.1 + 0.9 * sure)


def test_a_teacher_with_the_same_doubts_everywhere_is_healthy() -> None:
    rng = np.random.default_rng(3)
    on_u, on_c = (prediction_entropy(objects(rng.beta(2, 1, n).tolist())) for n in (400, 60))
    found = entropy_heartbeat("calibration", on_u, on_c)
    assert found.passed and 1 <= (found.value or 0) < 1.2
    assert "unlabelled items against calibration" in found.name


@pytest.mark.parametrize("scores", [np.full(50, 0.999), np.full(50, 0.5)], ids=["certain of everything", "of nothing"])
def test_a_collapsed_teacher_is_seen_against_the_round_before(scores: np.ndarray) -> None:
    before = prediction_entropy(objects(np.linspace(0.8, 1, 50).tolist()))
    found = entropy_heartbeat("the round before", prediction_entropy(objects(scores.tolist())), before)
    assert not found.passed and (found.value or 0) > MAX_ENTROPY_FACTOR


def test_without_predictions_or_doubt_there_is_nothing_to_compare() -> None:
    assert not entropy_heartbeat("calibration", None, 0.5).passed
    certain = entropy_heartbeat("calibration", prediction_entropy(objects([1.0])), 0.5)
    assert certain.value is None and "any doubt" in certain.reason
