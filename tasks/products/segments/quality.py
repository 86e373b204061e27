"""How an instance teacher looks at U: each object with measured qualities of its mask.

    q_stability   IoU of the masks at logit +1 and -1: how much the outline depends on where the line is drawn
    q_tta         mean over other views of the best IoU with an object of the same class found there

Both are measured on the source canvas. The objects, and their scores, stay those of the plain view: thresholds are
certified for these scores, whatever views there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from pycocotools import mask as coco_mask

from infra.errors import UsageError
from modelkit import Instances, Predictor, rle
from modelkit.base import Prediction, SoftMasks
from modelkit.transform import SizeHW
from modelkit.tta import ViewsPredictor
from tasks.engine.job import JobSpec, PredictorSpec
from tasks.engine.predictors import load_predictor
from tasks.products.segments.schema import MEASURED

STABILITY_LOGIT = 1.0


@dataclass(frozen=True, slots=True)
class ViewedObjects:
    """What was found in one image, and in other views of it: un-warped, in source pixels."""

    plain: SoftMasks
    others: tuple[SoftMasks, ...]

    @property
    def size_hw(self) -> SizeHW:
        """Of the source image."""
        return self.plain.size_hw

    def cpu(self) -> ViewedObjects:
        """The same on the host."""
        return ViewedObjects(_on_host(self.plain), tuple(_on_host(each) for each in self.others))

    def finish(self, min_score: float = 0.0) -> Instances:
        """The objects of the plain view with their qualities."""
        found = self.plain.finish()
        qualities = {"q_stability": stability(self.plain)}
        if self.others:
            qualities["q_tta"] = agreement(found, [each.finish() for each in self.others])
        return replace(found, qualities=qualities).at_least(min_score)


def _on_host(found: SoftMasks) -> SoftMasks:
    return cast(SoftMasks, found.cpu())


def stability(found: SoftMasks) -> np.ndarray:
    """(n,) float32 IoU of the masks at logit +1 and -1; 0 where there is no pixel at -1 either."""
    above, below = (
        found.finish(threshold=1 / (1 + math.exp(-logit))).rles for logit in (STABILITY_LOGIT, -STABILITY_LOGIT)
    )
    assert above is not None and below is not None  # these models always have masks
    return rle.ious(above, below).astype(np.float32)


def agreement(found: Instances, others: Sequence[Instances]) -> np.ndarray:
    """(n,) float32 mean over views of the best IoU with an object of the same class; 0 where a view has none."""
    best = np.zeros((len(others), len(found)))
    for seen, view in zip(best, others, strict=True):
        for label in np.intersect1d(found.labels, view.labels).tolist():
            mine, theirs = (np.flatnonzero(each.labels == label) for each in (found, view))
            masks = [_coco(found, mine), _coco(view, theirs)]
            seen[mine] = np.asarray(coco_mask.iou(*masks, [0] * len(theirs))).max(axis=1)
    return best.mean(axis=0).astype(np.float32)


def _coco(found: Instances, places: np.ndarray) -> list[dict[str, object]]:
    assert found.rles is not None
    return [{"size": list(found.size_hw), "counts": found.rles[k]} for k in places.tolist()]


class QualityPredictor(ViewsPredictor):
    """An instance model that measures how good the masks of its objects are.

    Args:
        predictor: of the model; its device and way of running are taken over.
        views: names in ``modelkit.tta.VIEWS``, for ``q_tta``; without any it is not measured.

    Raises:
        UsageError: the model has no masks whose probabilities are known.
        ConfigError: see :class:`ViewsPredictor`.
    """

    def __init__(self, predictor: Predictor, views: Iterable[str] = ()) -> None:
        if not predictor.model.gives_soft_masks or predictor.weights.kind != "instance":
            raise UsageError(f"{predictor.weights.reference} gives no probabilities of masks")
        super().__init__(predictor, views)

    def merge(self, plain: Prediction, others: Sequence[Prediction]) -> ViewedObjects:
        seen = [cast(SoftMasks, each) for each in others]
        righted = [each.mirrored() if view.mirrored else each for view, each in zip(self.views, seen, strict=True)]
        return ViewedObjects(cast(SoftMasks, plain), tuple(righted))


def quality_predictor(job: JobSpec) -> Predictor:
    """What workers call; see ``JobSpec.predictor_factory``."""
    views = job.predictor_options.get("views", ())
    return load_predictor(job).around(lambda plain: QualityPredictor(plain, views))


def spec_of(views: Sequence[str]) -> PredictorSpec:
    """What workers look with: at the plain view and at these others."""
    return PredictorSpec(
        f"{quality_predictor.__module__}:{quality_predictor.__name__}",
        {"views": list(views)} if views else {},
        MEASURED,
        known_as="tasks.retraining.quality:quality_predictor",
    )
