"""Top-down landmark models over whole images: whose points are looked for is said by a detector, or known before.

Objects are cut out of all images of a batch, and share batches of their own; so many small objects cost few passes of
the network, and an image is read and decoded once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from modelkit.base import Prediction
from modelkit.carriers import SizeHW
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.errors import ConfigError
from modelkit.landmarks.crops import prepare_objects
from modelkit.landmarks.landmarker import TopDownModel
from modelkit.pictures import as_pixels
from modelkit.predictor import Predictor, Prepared
from modelkit.records import Weights
from modelkit.registry import create_model
from modelkit.transform import Geometry

OBJECTS_PER_BATCH = 32


@dataclass(frozen=True, slots=True)
class FoundBoxes:
    """Whose points are looked for in an image.

    Args:
        boxes_xyxy: (n, 4) float32, source pixels; those without an area are passed over.
        scores: (n,) float32 in [0, 1].
        labels: (n,) class ids.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def kept(self, min_score: float, labels: Collection[int] | None) -> FoundBoxes:
        """Those that score enough, of some classes (None: of all), and have an area."""
        keep = (self.scores >= min_score) & (self.boxes_xyxy[:, 2:] > self.boxes_xyxy[:, :2]).all(1)
        if labels is not None:
            keep &= np.isin(self.labels, list(labels))
        return FoundBoxes(self.boxes_xyxy[keep], self.scores[keep], self.labels[keep])


@dataclass(frozen=True, slots=True)
class PreparedScene(Prepared):
    """An image as the detector sees it, and as objects are cut out of it."""

    image_rgb_hwc_u8: np.ndarray

    @property
    def nbytes(self) -> int:
        """Host memory held, bytes."""
        return self.pixels.nbytes + self.image_rgb_hwc_u8.nbytes


@dataclass(frozen=True, slots=True)
class PreparedObjects(Prepared):
    """An image whose objects are cut out already; ``pixels`` are empty, all images have the network's one bucket."""

    objects: tuple[Prepared, ...]

    @property
    def nbytes(self) -> int:
        """Host memory held, bytes."""
        return sum(each.nbytes for each in self.objects)


class TopDownPredictor(Predictor):
    """What finds the points of objects, and those objects before.

    Args:
        landmarker: of a top-down model; device, way of running and least score are taken over.
        classes: what the labels of boxes mean; results have them.
        box_score: boxes that score less are not looked at.
        box_classes: names of the classes of boxes that are looked at; none: all.
        objects_per_batch: at most so many objects go through the network at once.

    Raises:
        ConfigError: a model that is not top-down, or a class that is none.
    """

    def __init__(
        self,
        landmarker: Predictor,
        classes: Sequence[ClassInfo],
        *,
        box_score: float = 0.5,
        box_classes: Collection[str] = (),
        objects_per_batch: int = OBJECTS_PER_BATCH,
    ) -> None:
        if not isinstance(landmarker.model, TopDownModel):
            raise ConfigError(
                f"{landmarker.weights.reference} finds its objects itself: it looks at no boxes of others"
            )
        super().__init__(
            landmarker.model,
            replace(landmarker.weights, classes=tuple(classes)),
            landmarker.device,
            choice=landmarker.choice,
            min_score=landmarker.min_score,
        )
        self.rows_digest, self.num_keypoints = landmarker.rows_digest, landmarker.model.num_keypoints
        self.box_score, self.objects_per_batch = box_score, objects_per_batch
        self._labels, self._network_hw = labels_of(classes, box_classes), landmarker.model.network_hw

    def prepare_boxes(self, image: Any, boxes: FoundBoxes) -> PreparedObjects:
        """An image (as ``prepare`` takes it) whose objects are known."""
        kept, pixels = boxes.kept(self.box_score, self._labels), as_pixels(image)
        objects = prepare_objects(self, pixels, kept.boxes_xyxy, kept.scores, kept.labels)
        geometry = Geometry((pixels.shape[0], pixels.shape[1]), self._network_hw, self._network_hw)
        return PreparedObjects(np.zeros((0, 0, 3), np.uint8), geometry, tuple(objects))

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """As in :class:`Predictor`, for images that ``prepare_boxes`` made, and for whole images as one object each."""
        objects = [list(each.objects) if isinstance(each, PreparedObjects) else [each] for each in prepared]
        found = iter(self._look_at([one for mine in objects for one in mine]))
        return [
            joined([next(found) for _ in mine], each.geometry.source_hw, self.num_keypoints)
            for each, mine in zip(prepared, objects, strict=True)
        ]

    def _look_at(self, objects: Sequence[Prepared]) -> Iterator[LandmarkDetections]:
        for start in range(0, len(objects), self.objects_per_batch):
            for found in self.look(objects[start : start + self.objects_per_batch]):
                yield cast(LandmarkDetections, found.cpu())


class DetectingPredictor(TopDownPredictor):
    """A detector and a top-down model in one: the points of what the detector finds.

    Args:
        landmarker: see :class:`TopDownPredictor`.
        detector: of objects with boxes, without a memory.
        rest: see :class:`TopDownPredictor`.

    Raises:
        ConfigError: also for a detector with a memory, whose objects are those of a clip.
    """

    def __init__(self, landmarker: Predictor, detector: Predictor, **rest: Any) -> None:
        if detector.is_video:
            raise ConfigError(f"{detector.weights.reference} has a memory: it cannot detect for another model")
        super().__init__(landmarker, detector.weights.classes, **rest)
        self.detector = detector

    def prepare(self, image: Any) -> PreparedScene:
        """The image as the detector wants it; the image itself is kept, objects are cut out of it later."""
        seen = self.detector.prepare(image)
        return PreparedScene(seen.pixels, seen.geometry, as_pixels(image))

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Boxes of all images first, then the points of all their objects."""
        raws = self.detector.infer(prepared)
        scenes = [self._cut_out(*each) for each in zip(prepared, raws, strict=True)]
        return super().infer(scenes)

    def _cut_out(self, scene: Prepared, raw: Prediction) -> PreparedObjects:
        assert isinstance(scene, PreparedScene)
        found = self.detector.finish(raw)
        return self.prepare_boxes(scene.image_rgb_hwc_u8, FoundBoxes(found.boxes_xyxy, found.scores, found.labels))


def is_top_down(record: Weights) -> bool:
    """Whether the model of a record looks at one object at a time; nothing is allocated (meta device)."""
    with torch.device("meta"):
        return isinstance(create_model(record.architecture, **record.config), TopDownModel)


def labels_of(classes: Sequence[ClassInfo], names: Collection[str]) -> frozenset[int] | None:
    """Ids of the classes of some names; None where no name is given.

    Raises:
        ConfigError: a name that is none, with some of those that there are.
    """
    if not names:
        return None
    known = {each.name: each.id for each in classes}
    if unknown := sorted(set(names) - known.keys()):
        some = ", ".join(list(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise ConfigError(f"boxes have no class {', '.join(map(repr, unknown))}; there are {some}")
    return frozenset(known[name] for name in names)


def joined(found: Sequence[LandmarkDetections], size_hw: SizeHW, points: int) -> LandmarkDetections:
    """The objects of one image, the best first."""
    if not found:
        nothing = torch.zeros(0)
        return LandmarkDetections(
            size_hw, nothing.reshape(0, 4), nothing, nothing.long(), torch.zeros(0, points, 2), torch.zeros(0, points)
        )
    order = torch.cat([each.scores for each in found]).argsort(descending=True, stable=True)

    def all_of(name: str) -> Tensor:
        return torch.cat([getattr(each, name) for each in found])[order]

    names = ("boxes_xyxy", "scores", "labels", "keypoints_xy", "keypoint_scores")
    arrays: dict[str, Any] = {name: all_of(name) for name in names}
    return LandmarkDetections(size_hw, **arrays)
