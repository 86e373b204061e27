"""Paired bootstrap of a metric over images or groups: is the candidate better, or were the images lucky?

Both models are evaluated once on the same images; a resample draws whole groups with replacement and weighs every image
by how often its group was drawn. Average precision is recomputed exactly as pycocotools' ``accumulate`` would on a
physically repeated data set: a prediction of an image that is there twice counts twice, and as equal scores of equal
correctness stand next to each other, the precision envelope at every recall is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pycocotools.cocoeval import COCOeval

RESAMPLES = 1_000
_CHUNK = 64  # resamples in memory at once


class Resampled(Protocol):
    """A metric that can be recomputed under weights of the images."""

    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    size_names: tuple[str, ...]

    def values(self, weights: np.ndarray) -> MetricValues:
        """The metric for (b, images) weights."""


@dataclass(frozen=True, slots=True)
class MetricValues:
    """Values of b resamples; NaN where there is no truth.

    Args:
        overall: (b,).
        by_class: (b, classes).
        by_size: (b, sizes); no columns where the metric knows no sizes.
    """

    overall: np.ndarray
    by_class: np.ndarray
    by_size: np.ndarray


@dataclass(frozen=True, slots=True)
class _Cell:
    """Predictions of one class in one size range, sorted by falling score."""

    image: np.ndarray  # (n,)
    right: np.ndarray  # (T, n) matched with truth that counts
    wrong: np.ndarray  # (T, n)
    truth: np.ndarray  # (images,) true objects that count


class AveragePrecision:
    """COCO's AP over IoU .50:.05:.95, at most 100 predictions an image, resampled.

    Args:
        evaluator: after ``evaluate()``; images in the order of ``params.imgIds``.
        image_ids: names of these images, in that order.
        class_names: in the order of ``params.catIds``.
    """

    size_names = ("small", "medium", "large")

    def __init__(self, evaluator: COCOeval, image_ids: Sequence[str], class_names: Sequence[str]) -> None:
        parameters = evaluator._paramsEval
        if len(image_ids) != len(parameters.imgIds) or len(class_names) != len(parameters.catIds):
            raise ValueError(
                f"{len(image_ids)} images and {len(class_names)} classes are named, "
                f"{len(parameters.imgIds)} and {len(parameters.catIds)} were evaluated"
            )
        self.image_ids, self.class_names = tuple(image_ids), tuple(class_names)
        self._recalls = np.asarray(parameters.recThrs)
        self._thresholds = len(parameters.iouThrs)
        images, areas, most = len(parameters.imgIds), len(parameters.areaRng), parameters.maxDets[-1]
        self._cells = [
            [
                self._cell(evaluator.evalImgs[(k * areas + a) * images : (k * areas + a + 1) * images], most)
                for a in range(areas)
            ]
            for k in range(len(parameters.catIds))
        ]

    def _cell(self, entries: Sequence[dict[str, Any] | None], most: int) -> _Cell:
        scores, image, matches, ignored = [], [], [], []
        truth = np.zeros(len(entries), np.int64)
        for place, entry in enumerate(entries):
            if entry is None:
                continue
            truth[place] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
            scores.append(np.asarray(entry["dtScores"][:most], np.float64))
            image.append(np.full(len(scores[-1]), place))
            matches.append(np.asarray(entry["dtMatches"])[:, :most])
            ignored.append(np.asarray(entry["dtIgnore"])[:, :most])
        if not scores:
            nothing = np.zeros((self._thresholds, 0), bool)
            return _Cell(np.zeros(0, np.int64), nothing, nothing, truth)
        order = np.argsort(-np.concatenate(scores), kind="mergesort")  # as pycocotools sorts
        matched = np.concatenate(matches, axis=1)[:, order] != 0
        counts = ~np.concatenate(ignored, axis=1)[:, order].astype(bool)
        return _Cell(np.concatenate(image)[order], matched & counts, ~matched & counts, truth)

    def values(self, weights: np.ndarray) -> MetricValues:
        """AP for (b, images) non-negative weights; whole numbers are repetitions."""
        parts = [self._values(weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)]
        return MetricValues(*(np.concatenate([getattr(part, name) for part in parts]) for name in
                              ("overall", "by_class", "by_size")))  # fmt: skip

    def _values(self, weights: np.ndarray) -> MetricValues:
        cells = np.stack(
            [np.stack([self._precision(cell, weights) for cell in row], axis=1) for row in self._cells], axis=1
        )  # (b, classes, areas)
        with np.errstate(invalid="ignore"):
            over_classes = _nanmean(cells, axis=1)
        return MetricValues(over_classes[:, 0], cells[:, :, 0], over_classes[:, 1:])

    def _precision(self, cell: _Cell, weights: np.ndarray) -> np.ndarray:
        """(b,) mean interpolated precision of a cell; NaN in resamples without truth."""
        truth = weights @ cell.truth
        found = np.full(len(weights), np.nan)
        some = np.flatnonzero(truth > 0)
        if len(some) == 0:
            return found
        if len(cell.image) == 0:
            found[some] = 0.0
            return found
        mine = weights[some][:, cell.image].astype(np.float64)
        right = np.cumsum(mine[:, None, :] * cell.right, axis=2)
        wrong = np.cumsum(mine[:, None, :] * cell.wrong, axis=2)
        recall = right / truth[some][:, None, None]
        precision = right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
        found[some] = [
            np.mean([self._interpolated(recall[b, t], envelope[b, t]) for t in range(self._thresholds)])
            for b in range(len(some))
        ]
        return found

    def _interpolated(self, recall: np.ndarray, envelope: np.ndarray) -> float:
        place = np.searchsorted(recall, self._recalls, side="left")
        reached = place < len(recall)
        return float(envelope[place[reached]].sum() / len(self._recalls))


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class MeanIoU:
    """Mean intersection over union of semantic maps, resampled.

    Args:
        confusion: (images, classes, classes) pixels: rows truth, columns prediction; void pixels in none.
        image_ids, class_names: of the axes.
    """

    size_names: tuple[str, ...] = ()

    def __init__(self, confusion: np.ndarray, image_ids: Sequence[str], class_names: Sequence[str]) -> None:
        if confusion.shape != (len(image_ids), len(class_names), len(class_names)):
            raise ValueError(f"confusion must be (images, classes, classes), got {confusion.shape}")
        self._confusion = confusion.astype(np.float64)
        self.image_ids, self.class_names = tuple(image_ids), tuple(class_names)

    def values(self, weights: np.ndarray) -> MetricValues:
        """Mean IoU for (b, images) weights; classes without truth or prediction are left out of the mean."""
        total = np.einsum("bi,ijk->bjk", weights.astype(np.float64), self._confusion)
        both = np.diagonal(total, axis1=1, axis2=2)
        either = total.sum(axis=1) + total.sum(axis=2) - both
        by_class = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
        return MetricValues(_nanmean(by_class, axis=1), by_class, np.zeros((len(weights), 0)))


class MeanPanopticQuality:
    """Panoptic quality (Kirillov et al. 2019, eq. 1), mean over classes, resampled.

    Args:
        segments: (images, classes, 4): sum of the IoUs of matched segments, matched, predicted only, true only.
        image_ids, class_names: of the axes.
    """

    size_names: tuple[str, ...] = ()

    def __init__(self, segments: np.ndarray, image_ids: Sequence[str], class_names: Sequence[str]) -> None:
        if segments.shape != (len(image_ids), len(class_names), 4):
            raise ValueError(f"segments must be (images, classes, 4), got {segments.shape}")
        self._segments = segments.astype(np.float64)
        self.image_ids, self.class_names = tuple(image_ids), tuple(class_names)

    def values(self, weights: np.ndarray) -> MetricValues:
        """PQ for (b, images) weights; classes without truth or prediction are left out of the mean."""
        total = np.einsum("bi,ikf->bkf", weights.astype(np.float64), self._segments)
        iou, matched, extra, missed = np.moveaxis(total, 2, 0)
        segments = matched + (extra + missed) / 2
        by_class = np.divide(iou, segments, out=np.full(iou.shape, np.nan), where=segments > 0)
        return MetricValues(_nanmean(by_class, axis=1), by_class, np.zeros((len(weights), 0)))


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


def compare(
    candidate: Resampled,
    champion: Resampled,
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
    ours, theirs = candidate.values(at_once), champion.values(at_once)
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
        size_names=candidate.size_names,
        size_difference=by_size[0],
    )


def group_weights(groups: Sequence[str], *, seed: int, resamples: int) -> np.ndarray:
    """(resamples, images) how often each image is in: whole groups are drawn, as many as there are."""
    _, place = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    n = int(place.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    return drawn[:, place]


def _nanstd(values: np.ndarray) -> np.ndarray:
    mean = _nanmean(values, axis=0)
    return np.sqrt(_nanmean((values - mean) ** 2, axis=0))
