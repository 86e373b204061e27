"""Paired bootstrap of a metric over images or groups: is the candidate better, or were the images lucky?

Both models are evaluated once on the same images; a resample draws whole groups with replacement and weighs every image
by how often its group was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.product import Judgement

RESAMPLES = 1_000


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is there; NaN where nothing is, without numpy's warning."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Candidate minus champion; NaN where there is no truth.

    Args:
        value, reference: the metric of both on all images.
        difference: of the two.
        probability: share of resamples in which the candidate is better.
        low, high: 2.5 and 97.5 % quantile of the difference.
        class_difference, class_error: (classes,) differences and bootstrap standard errors.
        size_difference: (sizes,).
    """

    value: float
    reference: float
    difference: float
    probability: float
    low: float
    high: float
    class_names: tuple[str, ...]
    class_difference: np.ndarray
    class_error: np.ndarray
    size_names: tuple[str, ...]
    size_difference: np.ndarray


@dataclass(frozen=True, slots=True)
class Intervals:
    """How far the main figure of one model may be off: 2.5 and 97.5 % quantiles over resamples of the groups.

    Args:
        groups: how many there are; of fewer than two nothing can be said, and all values are NaN.
        low, high: of the main figure.
        class_low, class_high: (classes,) of the same by class; NaN where there is no truth.
    """

    groups: int
    low: float
    high: float
    class_low: np.ndarray
    class_high: np.ndarray


def intervals_of(
    judgement: Judgement, *, groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> Intervals:
    """Bootstrap of one model; ``groups`` and ``seed`` as :func:`compare` takes them."""
    count = len(set(groups))
    if count < 2:
        nothing = np.full(len(judgement.class_names), np.nan)
        return Intervals(count, float("nan"), float("nan"), nothing, nothing)
    drawn = judgement.resample(group_weights(groups, seed=seed, resamples=resamples))
    low, high = _quantiles(drawn.overall[:, None])
    class_low, class_high = _quantiles(drawn.by_class)
    return Intervals(count, float(low[0]), float(high[0]), class_low, class_high)


def _quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k,) and (k,) 2.5 and 97.5 % quantiles of the columns of (b, k) values; NaN where a column has none."""
    low, high = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(0)
    low[known], high[known] = np.nanquantile(values[:, known], (0.025, 0.975), axis=0)
    return low, high


def compare(
    candidate: Judgement,
    champion: Judgement,
    *,
    groups: Sequence[str] | None = None,
    seed: int,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Paired bootstrap of two models on the same images.

    Args:
        groups: group of each image (a video's frames share one); images unless given.
        seed: the same seed draws the same resamples.

    Raises:
        ValueError: not the same images or classes.
    """
    if candidate.image_ids != champion.image_ids or candidate.class_names != champion.class_names:
        raise ValueError("the two models were not evaluated on the same images and classes")
    weights = group_weights(groups or candidate.image_ids, seed=seed, resamples=resamples)
    everything = np.ones((1, len(candidate.image_ids)), np.int64)
    at_once = np.concatenate([everything, weights])
    ours, theirs = candidate.resample(at_once), champion.resample(at_once)
    difference = ours.overall - theirs.overall
    by_class, by_size = ours.by_class - theirs.by_class, ours.by_size - theirs.by_size
    drawn = difference[1:]
    return PairedDifference(
        value=float(ours.overall[0]),
        reference=float(theirs.overall[0]),
        difference=float(difference[0]),
        probability=float((drawn > 0).mean()),
        low=float(np.nanquantile(drawn, 0.025)),
        high=float(np.nanquantile(drawn, 0.975)),
        class_names=candidate.class_names,
        class_difference=by_class[0],
        class_error=_nanstd(by_class[1:]),
        size_names=ours.size_names,
        size_difference=by_size[0],
    )


def group_weights(groups: Sequence[str], *, seed: int, resamples: int) -> np.ndarray:
    """(resamples, images) how often each image is in: whole groups are drawn, as many as there are."""
    _, place = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    n = int(place.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    return drawn[:, place]


def _nanstd(values: np.ndarray) -> np.ndarray:
    mean = nanmean(values, axis=0)
    return np.sqrt(nanmean((values - mean) ** 2, axis=0))
