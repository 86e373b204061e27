"""How a semantic teacher looks at U: not one region per class, but one per class and level of confidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from infra.errors import UsageError
from modelkit import ClassInfo, Instances, Predictor, rle
from modelkit.base import Prediction
from modelkit.layers.stretching import stretch
from modelkit.semantic.segmentor import stretch_nearest
from modelkit.transform import Geometry, SizeHW
from modelkit.tta import ViewsPredictor
from tasks.engine.job import JobSpec, PredictorSpec
from tasks.engine.predictors import load_predictor
from tasks.products.segments.pixels import confidence_regions

BACKGROUND_NAME = "background"


@dataclass(frozen=True, slots=True)
class ConfidenceMap:
    """The most probable class of every pixel and how probable it is.

    Args:
        size_hw: of the source image.
        class_map, confidence: (h, w) at any resolution; stretched over the source by nearest neighbour.
    """

    size_hw: SizeHW
    class_map: Tensor
    confidence: Tensor

    def cpu(self) -> ConfidenceMap:
        """The same on the host."""
        return ConfidenceMap(self.size_hw, self.class_map.cpu(), self.confidence.cpu())

    def finish(self, min_score: float = 0.0) -> Instances:
        """One entry per class, background included, and level of confidence; the score is the level."""
        class_map, confidence = (
            stretch_nearest(each.numpy(force=True), self.size_hw) for each in (self.class_map, self.confidence)
        )
        regions = confidence_regions(class_map, confidence)
        masks = [each.rle for each in regions]
        found = Instances(
            size_hw=self.size_hw,
            boxes_xyxy=rle.bboxes(masks, self.size_hw).astype(np.float32),
            scores=np.array([each.level for each in regions], np.float32),
            labels=np.array([each.label for each in regions], np.int32),
            rles=masks,
            is_thing=np.zeros(len(regions), bool),
        )
        return found.at_least(min_score)


@dataclass(frozen=True, slots=True)
class ProbabilityMap:
    """How probable every class is at every pixel, (C, h, w) float32; see :class:`ConfidenceMap`."""

    size_hw: SizeHW
    probabilities: Tensor

    def cpu(self) -> ProbabilityMap:
        """The same on the host."""
        return replace(self, probabilities=self.probabilities.cpu())

    def most_probable(self) -> ConfidenceMap:
        """The most probable class of every pixel, of equal ones the first."""
        best = self.probabilities.max(0)
        return ConfidenceMap(self.size_hw, best.indices.to(torch.int16), best.values)

    def finish(self, min_score: float = 0.0) -> Instances:
        """As :class:`ConfidenceMap` does."""
        return self.most_probable().finish(min_score)


class ConfidencePredictor(ViewsPredictor):
    """A semantic model that tells how sure it is of every pixel; knows the background by name, too.

    With other views the probabilities of a pixel are the mean over all views (Chen et al. 2020, Naive-Student).

    Args:
        predictor: of the model; its device and way of running are taken over.
        views: names in ``modelkit.tta.VIEWS``.

    Raises:
        UsageError: the model does no semantic segmentation.
        ConfigError: see :class:`ViewsPredictor`.
    """

    blends = False  # of tiles: a region of each belongs to one level

    def __init__(self, predictor: Predictor, views: Iterable[str] = ()) -> None:
        if not predictor.model.gives_probabilities:
            raise UsageError(f"{predictor.weights.reference} gives no probabilities of pixels")
        super().__init__(predictor, views)
        background = background_of(self.model)
        if background is not None:
            self.weights = replace(self.weights, classes=(background, *self.weights.classes))

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[ProbabilityMap]:
        found = self.model.probabilities(raw, geometries)
        return [ProbabilityMap(each.source_hw, maps) for each, maps in zip(geometries, found, strict=True)]

    def merge(self, plain: Prediction, others: Sequence[Prediction]) -> ConfidenceMap:
        total = cast(ProbabilityMap, plain).probabilities
        for view, found in zip(self.views, others, strict=True):
            seen = cast(ProbabilityMap, found).probabilities
            seen = stretch((seen.flip(-1) if view.mirrored else seen)[None], total.shape[-2:])[0]
            total = total + seen
        return ProbabilityMap(plain.size_hw, total / (1 + len(others))).most_probable()


def background_of(model: object) -> ClassInfo | None:
    """The class of what no object covers, where a model has one."""
    background = getattr(model, "background", None)
    return None if background is None else ClassInfo(background, BACKGROUND_NAME, is_thing=False)


def confidence_predictor(job: JobSpec) -> Predictor:
    """What workers call; see ``JobSpec.predictor_factory``."""
    views = job.predictor_options.get("views", ())
    return load_predictor(job).around(lambda plain: ConfidencePredictor(plain, views))


def spec_of(views: Sequence[str]) -> PredictorSpec:
    """What workers look with: at the plain view and at these others."""
    return PredictorSpec(
        f"{confidence_predictor.__module__}:{confidence_predictor.__name__}",
        {"views": list(views)} if views else {},
        known_as="tasks.retraining.confidence:confidence_predictor",
    )
