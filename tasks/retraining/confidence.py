"""How a semantic teacher looks at U: not one region per class, but one per class and level of confidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from infra.errors import UsageError
from modelkit import ClassInfo, Instances, Predictor, rle
from modelkit.semantic import SemanticSegmentor
from modelkit.semantic.segmentor import stretch_nearest
from modelkit.transform import Geometry, SizeHW
from tasks.inference.job import JobSpec
from tasks.inference.worker import load_predictor
from tasks.selftraining.pixels import confidence_regions

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

    def to_instances(self) -> Instances:
        """One entry per class, background included, and level of confidence; the score is the level."""
        class_map, confidence = (
            stretch_nearest(each.numpy(force=True), self.size_hw) for each in (self.class_map, self.confidence)
        )
        regions = confidence_regions(class_map, confidence)
        masks = [each.rle for each in regions]
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=rle.bboxes(masks, self.size_hw).astype(np.float32),
            scores=np.array([each.level for each in regions], np.float32),
            labels=np.array([each.class_id for each in regions], np.int32),
            rles=masks,
            is_thing=np.zeros(len(regions), bool),
        )


class ConfidencePredictor(Predictor):
    """A semantic model that tells how sure it is of every pixel; knows the background by name, too.

    Args:
        predictor: of the model; its device and way of running are taken over.

    Raises:
        UsageError: the model does no semantic segmentation.
    """

    def __init__(self, predictor: Predictor) -> None:
        model = predictor.model
        if not isinstance(model, SemanticSegmentor):
            raise UsageError(f"{predictor.weights.reference} gives no probabilities of pixels")
        weights = predictor.weights
        background = background_of(model)
        if background is not None:
            weights = dataclasses.replace(weights, classes=(background, *weights.classes))
        super().__init__(model, weights, predictor.device, choice=predictor.choice)
        self._segmentor = model

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[ConfidenceMap]:
        found = self._segmentor.confidences(raw, geometries)
        return [ConfidenceMap(each.source_hw, *maps) for each, maps in zip(geometries, found, strict=True)]


def background_of(model: object) -> ClassInfo | None:
    """The class of what no object covers, where a model has one."""
    background = getattr(model, "background", None)
    return None if background is None else ClassInfo(background, BACKGROUND_NAME, is_thing=False)


def confidence_predictor(job: JobSpec) -> ConfidencePredictor:
    """What workers call; see ``JobSpec.predictor_factory``."""
    return ConfidencePredictor(load_predictor(job))


FACTORY = f"{confidence_predictor.__module__}:{confidence_predictor.__name__}"
