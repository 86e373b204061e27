"""Average precision that can be computed again under weights of the images, exactly as pycocotools would.

A resample is what pycocotools' ``accumulate`` gives on a physically repeated data set: a prediction of an image that is
there twice counts twice, and as equal scores of equal correctness stand next to each other, the precision envelope at
every recall is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from tasks.evaluation.bootstrap import nanmean
from tasks.product import Resampled

_CHUNK = 64  # resamples in memory at once


@dataclass(frozen=True, slots=True)
class _Cell:
    """Predictions of one class in one size range, sorted by falling score."""

    image: np.ndarray  # (n,)
    right: np.ndarray  # (T, n) matched with truth that counts
    wrong: np.ndarray  # (T, n)
    truth: np.ndarray  # (images,) true objects that count


class AveragePrecision:
    """COCO's AP over its thresholds, at most as many predictions an image as it evaluates, to be resampled.

    Args:
        evaluator: after ``evaluate()``; weights follow the order of ``params.imgIds``, classes that of ``catIds``.
    """

    def __init__(self, evaluator: COCOeval) -> None:
        self._evaluator = evaluator
        parameters = evaluator._paramsEval
        self._recalls = np.asarray(parameters.recThrs)
        self._thresholds = len(parameters.iouThrs)
        self.size_names = tuple(parameters.areaRngLbl[1:])  # the first one is of all objects

    @functools.cached_property
    def _cells(self) -> list[list[_Cell]]:
        """By class and size; made when first asked for, since most judgements are never resampled."""
        parameters, entries = self._evaluator._paramsEval, self._evaluator.evalImgs
        images, areas, most = len(parameters.imgIds), len(parameters.areaRng), parameters.maxDets[-1]
        starts = [[(k * areas + a) * images for a in range(areas)] for k in range(len(parameters.catIds))]
        return [[self._cell(entries[start : start + images], most) for start in row] for row in starts]

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

    def __call__(self, weights: np.ndarray) -> Resampled:
        """AP for (b, images) non-negative weights; whole numbers are repetitions."""
        parts = [self._values(weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)]
        overall, by_class, by_size = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("overall", "by_class", "by_size")
        )
        return Resampled(overall, by_class, by_size, self.size_names)

    def _values(self, weights: np.ndarray) -> Resampled:
        cells = np.stack(
            [np.stack([self._precision(cell, weights) for cell in row], axis=1) for row in self._cells], axis=1
        )  # (b, classes, areas)
        with np.errstate(invalid="ignore"):
            over_classes = nanmean(cells, axis=1)
        return Resampled(over_classes[:, 0], cells[:, :, 0], over_classes[:, 1:])

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


def resampling_of(evaluator: COCOeval | None, classes: int) -> Callable[[np.ndarray], Resampled]:
    """Resamples of what an evaluator matched; where nothing was found, and so there is none, all of them are 0."""
    return functools.partial(_nothing_found, classes) if evaluator is None else AveragePrecision(evaluator)


def _nothing_found(classes: int, weights: np.ndarray) -> Resampled:
    return Resampled(np.zeros(len(weights)), np.zeros((len(weights), classes)), np.zeros((len(weights), 0)))
