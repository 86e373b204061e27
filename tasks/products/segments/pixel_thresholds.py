"""Thresholds of pixels, certified on held-out labels by bootstrap over images.

Pixels of one image are not independent: bounds come from resampling whole images, never pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tasks.loop.certified import FIRST_SHARE, LEVEL, fewest
from tasks.loop.shortfall import images_needed, in_words
from tasks.loop.thresholds import LOWER_BY, ClassThreshold, ThresholdSet
from tasks.products.segments.pixels import LEVELS, PixelCounts

if TYPE_CHECKING:  # its module brings torch
    from modelkit import ClassInfo

LOWEST = LEVELS.index(0.5)  # below it another class is as likely
RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class PixelPromise:
    """What precision is promised of accepted pixels, at how much evidence.

    Both values are for a class that fills next to nothing. A class of the share p of all pixels has to reach
    1 - (1 - promise)(1 - p): calling every pixel so is already right for p of them, and a promise of .90 for a
    background that fills .88 would let nearly all missed objects be taught as background.

    An object is often right or wrong as a whole, so evidence is images, not pixels: fewer than 29 could not certify
    .90 even without an error, nor fewer than 14 .80 (see ``certified``).

    Args:
        high, low: precision; each needs accepted pixels of the class on so many images that calibrate.
    """

    high: float = 0.90
    low: float = 0.80

    @classmethod
    def of(cls, precision: float) -> PixelPromise:
        """So much where there is evidence enough, a tenth less where there is not."""
        return cls(precision, precision - LOWER_BY)


def relative_target(promise: float, share: float) -> float:
    """The precision that a class of this share of all pixels must reach, see :class:`PixelPromise`."""
    return 1 - (1 - promise) * (1 - share)


def certify_pixel_thresholds(
    counts: PixelCounts,
    classes: Sequence[ClassInfo],
    *,
    model_id: str,
    round_number: int,
    calibration_split: str,
    seed: int,
    background: int | None = None,
    promise: PixelPromise | None = None,
    promises: Mapping[int, PixelPromise] | None = None,
    resamples: int = RESAMPLES,
) -> ThresholdSet:
    """Per class the lowest level from which the lower 5 % bootstrap quantile of pixel precision reaches the target.

    Levels are tried from the most confident outward, beginning where enough images have accepted pixels and a fifth of
    all pixels from .50 on is accepted; the first failure ends it, as for objects. Never below .50. Classes that cannot
    be certified alone are pooled: one level for all of them, at the lower promise; a member that plainly breaks it
    abstains, as does a background that is not certified.

    Args:
        seed: of the resampling; the same seed gives the same thresholds.
        background: a class that is never pooled: its errors are the objects that were missed.
        promises: class id -> another promise than ``promise``; only classes of one promise are pooled.
    """
    usual, others = promise or PixelPromise(), promises or {}
    promised = {each.id: others.get(each.id, usual) for each in classes}
    images = len(counts.image_ids)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    evidence = {each.id: _Evidence.of(counts, [each.id]) for each in classes}
    found = {each.id: _alone(evidence[each.id], each, weights, promised[each.id]) for each in classes}
    open_ids = [each.id for each in classes if found[each.id].t_hi is None and each.id != background]
    for one in sorted(set(map(promised.__getitem__, open_ids)), key=lambda each: each.low):
        members = [label for label in open_ids if promised[label] == one]
        pool = _Evidence.of(counts, members)
        for label in members if len(members) > 1 else ():
            found[label] = _pooled(evidence[label], found[label], pool, weights, one)
    return ThresholdSet(model_id, round_number, calibration_split, tuple(found[key] for key in sorted(found)))


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Pixels of a class, or of several together, on the images that calibrate.

    Args:
        total, right: (images, levels) pixels at or above each level.
        num_images: with truth of any of them.
        truth_per_image: true pixels per image.
        share: of all labelled pixels; of several classes that of the largest.
    """

    total: np.ndarray
    right: np.ndarray
    num_images: int
    truth_per_image: float
    share: float

    @classmethod
    def of(cls, counts: PixelCounts, labels: Sequence[int]) -> _Evidence:
        places = [counts.labels.index(label) for label in labels]
        total, right = (
            np.cumsum(each[:, places].sum(axis=1)[:, ::-1], axis=1)[:, ::-1] for each in (counts.total, counts.right)
        )
        truth = counts.truth[:, places].sum(axis=1)
        return cls(
            total,
            right,
            int((truth > 0).sum()),
            float(truth.mean()) if len(truth) else 0.0,
            float(counts.truth[:, places].sum(axis=0).max() / max(counts.truth.sum(), 1)),
        )

    def lowest_level(self, weights: np.ndarray, target: float, least: int) -> tuple[int | None, float]:
        """The last level that holds, from the most confident outward, and its bound; None where the first fails.

        Args:
            weights: (resamples, images) how often each image is drawn.
            target: to be reached by the lower quantile of precision.
            least: images with pixels at or above the first level.
        """
        bounds = _quantiles(weights @ self.right, weights @ self.total, LEVEL)
        images, pixels = (self.total > 0).sum(axis=0), self.total.sum(axis=0)
        first = FIRST_SHARE * pixels[LOWEST]  # an earlier start is a trap: one early error would end the sequence
        chosen: int | None = None
        for level in range(len(LEVELS) - 1, LOWEST - 1, -1):
            if images[level] < least or pixels[level] < first:
                continue
            if not bounds[level] >= target:
                break
            chosen = level
        return chosen, float("nan") if chosen is None else float(bounds[chosen])

    def shortfall(self, weights: np.ndarray, target: float, least: int) -> str:
        """How far the pixels of the first level that a certificate would be about are from the target."""
        images, pixels = (self.total > 0).sum(axis=0), self.total.sum(axis=0)
        levels = [level for level in range(len(LEVELS) - 1, LOWEST - 1, -1) if pixels[level]]
        if not levels:
            needed = max(least - self.num_images, 1)
            return f"no pixel was as sure as .50, {needed} more labelled images with the class are needed at least"
        first = FIRST_SHARE * pixels[LOWEST]
        level = next((each for each in levels if pixels[each] >= first and images[each] >= least), levels[-1])
        right, looked = int(self.right[:, level].sum()), int(pixels[level])
        bound = float(_quantiles(weights @ self.right[:, [level]], weights @ self.total[:, [level]], LEVEL)[0])
        needed_images = images_needed(right / looked, bound, target, int(images[level]), least)
        more = None if needed_images is None else max(needed_images - int(images[level]), 1)
        return in_words(right, looked, target, more, self.num_images, "labelled images with the class")


def _alone(mine: _Evidence, each: ClassInfo, weights: np.ndarray, promise: PixelPromise) -> ClassThreshold:
    """By its own evidence, at the best promise that holds."""
    nothing = ClassThreshold(
        label=each.id,
        name=each.name,
        basis="abstain",
        target_precision=relative_target(promise.low, mine.share),
        t_hi=None,
        t_lo=0.0,  # no pixel becomes background: what is not accepted is ignored
        lower_bound=None,
        n_calibration=int(mine.total[:, 0].sum()),
        n_accepted=0,
        n_correct=0,
        truth_per_image=mine.truth_per_image,
        coverage=0.0,
        t_quality=None,
        note=f"{mine.num_images} images with truth",
    )
    found = nothing
    for value in (promise.high, promise.low):
        target = relative_target(value, mine.share)
        level, bound = mine.lowest_level(weights, target, fewest(value))
        if level is not None:
            return _accepted_from(replace(nothing, target_precision=target), "class", mine, level, bound)
        missed = mine.shortfall(weights, target, fewest(value))
        found = replace(nothing, note=f"{nothing.note}; {missed}")
    return found


def _accepted_from(
    nothing: ClassThreshold, basis: str, mine: _Evidence, level: int | None, bound: float
) -> ClassThreshold:
    if level is None:
        return nothing
    accepted = int(mine.total[:, level].sum())
    return replace(
        nothing,
        basis=basis,
        note=nothing.note.partition(";")[0],
        t_hi=LEVELS[level],
        lower_bound=bound,
        n_accepted=accepted,
        n_correct=int(mine.right[:, level].sum()),
        coverage=accepted / nothing.n_calibration if nothing.n_calibration else 0.0,
    )


def _pooled(
    mine: _Evidence, alone: ClassThreshold, pool: _Evidence, weights: np.ndarray, promise: PixelPromise
) -> ClassThreshold:
    """The pool's level for one of its members, unless the member plainly breaks the promise there."""
    target = relative_target(promise.low, pool.share)
    level, bound = pool.lowest_level(weights, target, fewest(promise.low))
    found = _accepted_from(replace(alone, target_precision=target), "pooled", mine, level, bound)
    if level is None or found.n_accepted == 0:
        return found
    highest = _quantiles(weights @ mine.right[:, [level]], weights @ mine.total[:, [level]], 1 - LEVEL)[0]
    if highest < relative_target(promise.low, mine.share):
        right = f"only {found.n_correct} of its {found.n_accepted} pixels above the pool's level are right"
        return replace(alone, target_precision=target, note=f"{alone.note}; {right}")
    return found


def _quantiles(right: np.ndarray, total: np.ndarray, level: float) -> np.ndarray:
    """(levels,) quantile of precision over (resamples, levels) counts; resamples without pixels count as 0."""
    precision = np.divide(right, total, out=np.zeros(right.shape), where=total > 0)
    return np.quantile(precision, level, axis=0)
