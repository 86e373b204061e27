"""The promise of a certified threshold is kept in 95 of 100 calibrations, whatever the detector is like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tasks.loop.certified import certify, counts_to_test, design_effect, fewest, lower_bound, upper_bound
from tasks.loop.thresholds import Promise


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        (0.80, {0: 14, 1: 22, 2: 30, 3: 37, 5: 50, 8: 69}),
        (0.90, {0: 29, 1: 46, 2: 61, 3: 76, 5: 103, 8: 142}),
        (0.95, {0: 59, 1: 93, 2: 124, 3: 153, 5: 208, 8: 286}),
    ],
)
def test_the_smallest_samples_that_certify_are_those_of_the_exact_table(target: float, sizes: dict[int, int]) -> None:
    for errors, n in sizes.items():
        assert lower_bound(n - errors, n) >= target > lower_bound(n - 1 - errors, n - 1)


def test_bounds_are_the_exact_binomial_ones() -> None:
    for right, n in ((1, 5), (17, 20), (90, 100)):
        bound = float(lower_bound(right, n))
        assert binom.sf(right - 1, n, bound) == pytest.approx(0.05, abs=1e-9)
        assert binom.cdf(right, n, upper_bound(right, n)) == pytest.approx(0.05, abs=1e-9)
    assert lower_bound(0, 10) == 0.0 and upper_bound(10, 10) == 1.0


def test_the_sequence_begins_at_a_fifth_and_ends_at_all() -> None:
    assert counts_to_test(28).tolist() == []
    assert counts_to_test(29).tolist() == [29]
    counts = counts_to_test(1_000)
    assert counts[0] == 200 and counts[-1] == 1_000 and len(counts) == 25


def simulated(rng: np.random.Generator, n: int, middle: float, steep: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and the chance of each to be right: a sigmoid in the score."""
    scores = np.sort(rng.random(n))[::-1]
    return scores, 1 / (1 + np.exp(-steep * (scores - middle)))


@pytest.mark.parametrize(
    ("n", "target", "middle", "steep"),
    [(60, 0.9, 0.1, 8.0), (150, 0.8, 0.3, 8.0), (400, 0.9, 0.1, 8.0), (400, 0.9, 0.35, 6.0), (1_500, 0.9, 0.35, 6.0)],
)
def test_false_acceptance_stays_below_five_per_cent_in_two_thousand_calibrations(
    n: int, target: float, middle: float, steep: float
) -> None:
    rng = np.random.default_rng(17)
    broken = naive_broken = 0
    for _ in range(2_000):
        scores, chance = simulated(rng, n, middle, steep)
        correct = rng.random(n) < chance
        found = certify(scores, correct, target)
        if found.threshold is not None:
            broken += chance[scores >= found.threshold].mean() < target
        precision = np.cumsum(correct) / np.arange(1, n + 1)
        passing = np.flatnonzero(precision >= target)
        naive_broken += len(passing) > 0 and chance[: passing[-1] + 1].mean() < target
    assert broken <= 0.05 * 2_000
    assert naive_broken > 0.3 * 2_000  # what everybody does: the lowest threshold that looks right


def test_equal_scores_stand_or_fall_together() -> None:
    scores = np.repeat([0.9, 0.8], 40)
    correct = np.repeat([True, False], 40)
    found = certify(scores, correct, 0.9)
    assert found.threshold == 0.9 and (found.n_accepted, found.n_correct) == (40, 40)


def test_nothing_is_certified_from_too_little_or_too_bad() -> None:
    assert certify(np.linspace(1, 0, 28), np.ones(28, bool), 0.9).threshold is None
    assert certify(np.linspace(1, 0, 200), np.arange(200) % 2 == 0, 0.9).threshold is None
    assert certify(np.zeros(0), np.zeros(0, bool), 0.9).threshold is None


def test_the_first_failure_ends_the_sequence() -> None:
    correct = np.ones(1_000, bool)
    correct[250:400] = False  # afterwards it looks fine again, but that is another hypothesis
    found = certify(np.linspace(1, 0, 1_000), correct, 0.6)
    assert found.threshold is not None and found.n_accepted < 450


def test_candidates_that_fail_together_count_for_less() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 10)
    together = np.repeat(rng.random(60) < 0.93, 10)
    alone = rng.random(600) < 0.93
    effect = design_effect(together - 0.93, groups)
    assert 7 < effect < 13 and design_effect(alone - 0.93, groups) < 1.6
    scores = np.linspace(1, 0.5, 600)
    assert certify(scores, np.ones(600, bool), 0.9, design_effect=effect).n_accepted == 600
    assert certify(scores[:250], np.ones(250, bool), 0.9, design_effect=effect).threshold is None  # 25 images' worth


@pytest.mark.parametrize(("target", "least"), [(0.5, 5), (0.8, 14), (0.9, 29), (0.95, 59)])
def test_the_fewest_that_can_certify_do_without_an_error_and_one_less_do_not(target: float, least: int) -> None:
    assert fewest(target) == least
    assert lower_bound(least, least) >= target > lower_bound(least - 1, least - 1)


def test_a_promise_is_a_tenth_lower_where_labels_are_few() -> None:
    assert Promise.of(0.9) == Promise()
    less = Promise.of(0.6)
    assert (less.high, less.low, less.pool_from) == (0.6, 0.5, 5)
