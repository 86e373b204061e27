"""The certified threshold: the lowest score from which the promised precision is proven on held-out labels.

Tuning a threshold until the precision on a validation set looks right breaks the promise in about half of all cases:
the best-looking of many thresholds is the luckiest. Here a fixed sequence of accepted counts, chosen before any
correctness is seen, is tested from the most confident candidates outward, each by the exact one-sided Clopper-Pearson
bound, and the first failure ends it. Testing in a fixed order costs no level (Maurer, Hothorn & Lehmacher 1995), so the
promise fails in at most 5 % of calibrations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

LEVEL = 0.05
STEPS = 25
FIRST_COUNT = 29  # the fewest that can certify .90 without an error
FIRST_SHARE = 0.2  # an earlier start is a trap: one early error would end the sequence


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold and its proof. ``threshold`` is None when nothing could be certified; the counts are then 0.

    Args:
        threshold: accept scores from here on.
        lower_bound: of the precision among the accepted.
        n_accepted, n_correct: the evidence.
    """

    threshold: float | None
    lower_bound: float | None = None
    n_accepted: int = 0
    n_correct: int = 0


def lower_bound(correct: np.ndarray | float, n: np.ndarray | float, level: float = LEVEL) -> np.ndarray:
    """Exact one-sided Clopper-Pearson lower bound of a proportion; broadcasts; counts need not be whole.

    Args:
        correct, n: successes and trials, 0 <= correct <= n.
        level: chance that the bound lies above the truth, at most.
    """
    correct, n = np.broadcast_arrays(np.asarray(correct, np.float64), np.asarray(n, np.float64))
    bound = np.zeros(correct.shape)
    some = correct > 0
    bound[some] = betaincinv(correct[some], n[some] - correct[some] + 1.0, level)
    return bound


def upper_bound(correct: float, n: float, level: float = LEVEL) -> float:
    """Exact one-sided upper bound."""
    return 1.0 - float(lower_bound(n - correct, n, level))


def fewest(target: float, level: float = LEVEL) -> int:
    """How many candidates can certify a precision without a single error: 29 for .90, 14 for .80."""
    return max(1, math.ceil(math.log(level) / math.log(target)))


def counts_to_test(n: int, design_effect: float = 1.0) -> np.ndarray:
    """The accepted counts in testing order: from ``max(29 x design effect, n / 5)`` to n in even steps; else empty."""
    first = int(np.ceil(max(FIRST_COUNT * design_effect, FIRST_SHARE * n)))
    if first > n:
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(first, n, STEPS).round().astype(np.int64))


def certify(
    scores: np.ndarray,
    correct: np.ndarray,
    target: float,
    *,
    level: float = LEVEL,
    design_effect: float = 1.0,
    limit: int | None = None,
) -> Certificate:
    """The lowest certified threshold of one class (or pool).

    Args:
        scores: (n,) of the candidates on the calibration set.
        correct: (n,) bool.
        target: the precision that is promised.
        level: chance that the promise is broken, at most.
        design_effect: by how much candidates of one image repeat each other (see :func:`design_effect`); evidence is
            divided by it.
        limit: test no more than the first so many, e.g. where precision must fall short because there are no more true
            objects.

    Equal scores stand or fall together: a count that would cut through them is moved to their end.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = np.asarray(scores, np.float64)[order], np.cumsum(np.asarray(correct, np.float64)[order])
    n = len(scores) if limit is None else min(limit, len(scores))
    counts = counts_to_test(n, design_effect)
    if len(counts) == 0:
        return Certificate(None)
    counts = np.unique(np.searchsorted(-scores, -scores[counts - 1], side="right"))
    bounds = lower_bound(hits[counts - 1] / design_effect, counts / design_effect, level)
    failed = np.flatnonzero(bounds < target)
    passed = int(failed[0]) if len(failed) else len(counts)
    if passed == 0:
        return Certificate(None)
    count = int(counts[passed - 1])
    return Certificate(float(scores[count - 1]), float(bounds[passed - 1]), count, int(hits[count - 1]))


def design_effect(residuals: np.ndarray, clusters: np.ndarray) -> float:
    """How much less n clustered candidates say than n independent ones: cluster-robust over plain variance, at least 1.

    Args:
        residuals: (n,) correctness minus what the score alone makes expect.
        clusters: (n,) image or group of each.
    """
    plain = float(np.square(residuals).sum())
    if plain == 0.0:
        return 1.0
    _, place = np.unique(clusters, return_inverse=True)
    return max(1.0, float(np.square(np.bincount(place, residuals)).sum()) / plain)
