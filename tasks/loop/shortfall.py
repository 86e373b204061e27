"""How far a class that abstains is from its promise, and about how many more labels would do.

The estimate takes the precision p that was reached as the true one, and asks for the fewest pieces of evidence N for
which the lower 95 % bound of p N right ones among N reaches the promise P. For candidates the bound is Clopper and
Pearson's. For pixels, whose bound b comes from resampling n images, N = n ((p - b) / (p - P))^2, because p - b falls
with the root of n. It is never fewer than could certify P without an error. Where p does not exceed P no number of
labels does: then the model has to become better, for which labels that train may serve.
"""

from __future__ import annotations

import math

from tasks.loop.certified import fewest, lower_bound

_MOST = 1_000_000
_HOPELESS = 100  # times as many labels: nobody makes them, and an estimate that far away is of no worth


def candidates_needed(reached: float, needed: float) -> int | None:
    """The fewest candidates that certify a promise at a precision; None where none do."""
    if reached <= needed:
        return None
    low, high = fewest(needed), fewest(needed)
    while lower_bound(reached * high, high) < needed:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if lower_bound(reached * middle, middle) >= needed else (middle + 1, high)
    return high


def images_needed(reached: float, bound: float, needed: float, images: int, least: int) -> int | None:
    """The same of images with pixels of a class, by the bound that ``images`` of them gave; at least ``least``."""
    if reached <= needed:
        return None
    return max(least, math.ceil(images * ((reached - bound) / (reached - needed)) ** 2 - 1e-9))


def in_words(right: int, looked: int, needed: float, more: int | None, there: int, unit: str) -> str:
    """For the note of a class.

    Args:
        right, looked: of the most confident candidates (pixels), how many were right.
        needed: the precision that has to be proven.
        more: labels beside those that there are; None where they would not do.
        there: labels that there are.
        unit: what is labelled, "true objects".
    """
    reached = f"reached {right / looked:.3f} ({right:,} of {looked:,}), needs {needed:.3f} for sure"
    if more is None:
        return f"{reached}: more labels to calibrate by would not do, the model has to become better"
    if more > _HOPELESS * max(there, 1):
        return f"{reached}: too near it for labels to tell, the model has to become better"
    return f"{reached}: about {more:,} more {unit} to calibrate by would do"
