"""Panoptic quality (Kirillov et al. 2019), its version for video (Kim et al. 2020), and identity switches.

A *panoptic array* is (..., H, W) integers: class id * ``DIVISOR`` + number of the segment within its class (0 for
stuff), and 0 where nothing is. Two pixels belong to one segment if and only if they hold the same value. In a truth,
a negative value is a crowd: minus the value of its class and number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelkit.carriers import Instances
from modelkit.rle import decode

DIVISOR = 1 << 20  # numbers of one class: far more than a clip has tracks


@dataclass(slots=True)
class _Sums:
    iou: float = 0.0
    matched: int = 0
    extra: int = 0  # predicted, not true
    missed: int = 0  # true, not predicted


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """The quality of one class, or the mean over classes.

    Args:
        pq: panoptic quality: ``sq`` times ``rq`` for one class.
        sq: mean IoU of matched segments, 0 without any.
        rq: F1 of segments.
    """

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """Means over the classes that occur in truth or prediction; zeros where none does.

    Args:
        all, things, stuff: means.
        by_class: per class id that occurs.
    """

    all: ClassQuality
    things: ClassQuality
    stuff: ClassQuality
    by_class: Mapping[int, ClassQuality]


@dataclass(slots=True)
class PanopticQuality:
    """Sums up matches over any number of images or tubes.

    A predicted and a true segment of one class match when their IoU exceeds one half: no segment can match twice.
    Pixels that the truth leaves open (void) do not count in the IoU. Crowds match nothing and are not missed; their
    pixels count in the IoU as those of any other segment. An unmatched prediction that lies for more than half on void
    and crowds of its own class is no mistake (section 4.2).

    Args:
        things: class ids of things; all others are stuff.
    """

    things: Collection[int]
    _sums: dict[int, _Sums] = field(default_factory=dict)

    def add(self, truth: np.ndarray, found: np.ndarray) -> None:
        """One image (H, W), or one clip (T, H, W) whose segments are then tubes through time.

        Args:
            truth, found: panoptic arrays; only the truth may hold crowds.

        Raises:
            ValueError: when the shapes differ.
        """
        if truth.shape != found.shape:
            raise ValueError(f"truth and prediction must have the same shape, got {truth.shape} and {found.shape}")
        pairs, shared = _overlaps(truth, found)
        true_sizes, found_sizes = _sums_by(pairs[:, 0], shared), _sums_by(pairs[:, 1], shared)
        void, excused = Counter[int](), Counter[int]()
        matched_true, matched_found = set(), set()
        overlaps = list(zip(*pairs.T.tolist(), shared.tolist(), strict=True))
        for a, b, n in overlaps:
            void[b] += n * (a == 0)
            excused[b] += n * (a == 0 or (a < 0 and -a // DIVISOR == b // DIVISOR))
        for a, b, n in overlaps:
            if a <= 0 or not b or a // DIVISOR != b // DIVISOR:
                continue
            union = true_sizes[a] + found_sizes[b] - n - void[b]
            if 2 * n > union:
                matched_true.add(a)
                matched_found.add(b)
                sums = self._of(a)
                sums.matched += 1
                sums.iou += n / union
        for a in true_sizes.keys() - matched_true:
            if a > 0:
                self._of(a).missed += 1
        for b in found_sizes.keys() - matched_found - {0}:
            if 2 * excused[b] <= found_sizes[b]:
                self._of(b).extra += 1

    def _of(self, segment: int) -> _Sums:
        return self._sums.setdefault(segment // DIVISOR, _Sums())

    def counts(self) -> dict[int, tuple[float, int, int, int]]:
        """By class id that occurs: sum of the IoUs of matched segments, matched, predicted only, true only."""
        return {label: (each.iou, each.matched, each.extra, each.missed) for label, each in sorted(self._sums.items())}

    def scores(self) -> PanopticScores:
        """The quality of what was added."""
        by_class = {label: _quality(sums) for label, sums in sorted(self._sums.items())}
        things = [quality for label, quality in by_class.items() if label in self.things]
        stuff = [quality for label, quality in by_class.items() if label not in self.things]
        return PanopticScores(_mean([*things, *stuff]), _mean(things), _mean(stuff), by_class)


def _overlaps(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k, 2) int64 pairs of values that share pixels, and (k,) how many."""
    true_values, true_index = np.unique(truth, return_inverse=True)
    found_values, found_index = np.unique(found, return_inverse=True)
    joint = true_index.reshape(-1) * len(found_values) + found_index.reshape(-1)
    counts = np.bincount(joint, minlength=len(true_values) * len(found_values))
    present = np.flatnonzero(counts)
    first, second = np.divmod(present, max(1, len(found_values)))
    return np.stack([true_values[first], found_values[second]], axis=1).astype(np.int64), counts[present]


def _sums_by(values: np.ndarray, counts: np.ndarray) -> dict[int, int]:
    sums: dict[int, int] = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        sums[value] = sums.get(value, 0) + count
    return sums


def _quality(sums: _Sums) -> ClassQuality:
    segments = sums.matched + (sums.extra + sums.missed) / 2
    rq = sums.matched / segments if segments else 0.0
    return ClassQuality(
        pq=sums.iou / segments if segments else 0.0, sq=sums.iou / sums.matched if sums.matched else 0.0, rq=rq
    )


def _mean(qualities: Sequence[ClassQuality]) -> ClassQuality:
    if not qualities:
        return ClassQuality(0.0, 0.0, 0.0)
    return ClassQuality(
        *(float(np.mean([getattr(quality, name) for quality in qualities])) for name in ("pq", "sq", "rq"))
    )


def video_panoptic_quality(
    clips: Iterable[tuple[np.ndarray, np.ndarray]], things: Collection[int], windows: Sequence[int] = (1, 2, 3, 4)
) -> dict[int, PanopticScores]:
    """VPQ^k (Kim et al. 2020, 4.2) for every window of k consecutive frames; VPQ is the mean of ``all.pq`` over k.

    Every window slides by one frame, within its clip; segments that hold one value through a window are one tube.

    Args:
        clips: (truth, prediction) panoptic arrays (T, H, W); the numbers of things are their track ids.
        things: class ids of things.
        windows: lengths k in frames; a clip shorter than k has no such window.
    """
    qualities = {k: PanopticQuality(things) for k in windows}
    for truth, found in clips:
        for k, quality in qualities.items():
            for first in range(len(truth) - k + 1):
                quality.add(truth[first : first + k], found[first : first + k])
    return {k: quality.scores() for k, quality in qualities.items()}


def count_id_switches(truth: np.ndarray, found: np.ndarray, things: Collection[int]) -> int:
    """How often a true object is found under another identity than the last time it was found.

    Args:
        truth, found: panoptic arrays (T, H, W) of one clip; an object is found where a segment of its class overlaps
            it with an IoU above one half.
        things: class ids of things.
    """
    last: dict[int, int] = {}
    switches = 0
    for true_frame, found_frame in zip(truth, found, strict=True):
        for a, b in _matches(true_frame, found_frame):
            if a // DIVISOR in things:
                switches += a in last and last[a] != b
                last[a] = b
    return switches


def _matches(truth: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    pairs, shared = _overlaps(truth, found)
    true_sizes, found_sizes = _sums_by(pairs[:, 0], shared), _sums_by(pairs[:, 1], shared)
    return [
        (a, b)
        for (a, b), n in zip(pairs.tolist(), shared.tolist(), strict=True)
        if a and b and a // DIVISOR == b // DIVISOR and 2 * n > true_sizes[a] + found_sizes[b] - n
    ]


def panoptic_array(found: Instances, tracked: bool = False) -> np.ndarray:
    """(H, W) int64 panoptic array of a model's segments.

    Args:
        found: masks must not overlap, as those of panoptic models.
        tracked: number things by their track ids instead of their order.

    Raises:
        ValueError: for masks that overlap, or with ``tracked`` when there are no track ids.
    """
    if found.rles is None or (tracked and found.track_ids is None):
        raise ValueError("a panoptic array needs masks" + (" and track ids" if tracked else ""))
    array = np.zeros(found.size_hw, np.int64)
    for index, rle in enumerate(found.rles):
        mask = decode(rle, found.size_hw)
        if array[mask].any():
            raise ValueError(f"segment {index} overlaps another one: this is no panoptic result")
        number = 0
        if found.is_thing[index]:
            number = 1 + (int(found.track_ids[index]) if tracked and found.track_ids is not None else index)
        array[mask] = int(found.labels[index]) * DIVISOR + number
    return array
