"""How teachers of points look at pictures: at objects that somebody finds for them, and from several views.

Every view is un-warped, and the points of an object are the mean of where its views have them: a place that was read
several times is nearer to the truth than one of its readings. What the views differ by is measured:

    q_views   mean over the other views of exp(-d^2 / 2 s^2), where d is how far the point lies from where the plain
              view has it and s is .05 of the diagonal of the object's box (``likeness``); a view that lacks the point
              counts 0

A top-down model looks at each object through shifted boxes, too: no box is exact. Of 150 scenes of digits, a landmarker
that had learnt from 60 others was off by .0948 of a box's diagonal from the labelled boxes, by .0940 to .1005 from
shifted ones, and by .0884 where the points of all five were averaged.

A mirrored view is put right by exchanging the points that change places in a mirror.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from infra.errors import UsageError
from modelkit import Predictor
from modelkit.base import Prediction
from modelkit.carriers import SizeHW
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.carriers.landmarks import ABSENT, KeypointSet, Landmarks
from modelkit.landmarks import FoundBoxes, TopDownPredictor, gathered, prepare_objects
from modelkit.landmarks.landmarker import mirrored_roles
from modelkit.landmarks.top_down import PreparedScene
from modelkit.pictures import as_pixels
from modelkit.predictor import Prepared
from modelkit.transform import Geometry
from modelkit.tta import VIEWS, View, ViewsPredictor
from tasks.engine.job import JobSpec
from tasks.engine.predictors import load_predictor
from tasks.products.landmarks.overlaps import box_ious, likeness
from tasks.products.landmarks.places import UsualPlace
from tasks.products.landmarks.predictors import detector_of

SHIFTS = ((-0.06, -0.06), (-0.06, 0.06), (0.06, -0.06), (0.06, 0.06))
"""How boxes are shifted to the right and down, in shares of their sides."""
SAME_OBJECT = 0.5
"""IoU of the boxes from which an object of another view is the same one."""


@dataclass(frozen=True, slots=True)
class ViewedPoints:
    """What was found in one image, brought together from its views."""

    found: Landmarks

    @property
    def size_hw(self) -> SizeHW:
        """Of the source image."""
        return self.found.size_hw

    def cpu(self) -> ViewedPoints:
        """It is there already."""
        return self

    def finish(self, min_score: float = 0.0) -> Landmarks:
        """The objects of the plain view with their points."""
        return self.found.at_least(min_score)


def brought_together(plain: Landmarks, others_xy: np.ndarray, others_score: np.ndarray) -> Landmarks:
    """The objects of the plain view, each point where its views have it on average.

    Args:
        plain: n objects of K points.
        others_xy: (V, n, K, 2) where V other views have them, un-warped; NaN where a view lacks one.
        others_score: (V, n, K) in [0, 1].

    Returns:
        The same objects, boxes and scores of objects; points and their scores are means over all views, with
        ``agreement``. A point that the plain view lacks stays absent, whatever others saw.
    """
    present = plain.visibility > ABSENT
    apart = np.hypot(*np.moveaxis(others_xy - plain.keypoints_xy, -1, 0))
    agreement = np.where(present, likeness(apart, plain.boxes_xyxy).mean(0), 0.0)
    all_xy = np.concatenate([plain.keypoints_xy[None], others_xy])
    seen = np.isfinite(all_xy).all(-1)
    mean_xy = np.where(seen[..., None], all_xy, 0.0).sum(0) / np.maximum(seen.sum(0), 1)[..., None]
    scores = np.concatenate([plain.keypoint_scores[None], np.where(seen[1:], others_score, 0.0)]).mean(0)
    return replace(
        plain,
        keypoints_xy=np.where(present[..., None], mean_xy, np.nan).astype(np.float32),
        keypoint_scores=np.where(present, scores, 0.0).astype(np.float32),
        agreement=agreement.astype(np.float32),
    )


class ViewsOfObjects(ViewsPredictor):
    """A model that finds its objects itself, and looks at other views of the image for the same ones.

    Args:
        predictor: of the model.
        views: names in ``modelkit.tta.VIEWS``, one or more.
        points: what the points are: which of them change places in a mirror.
    """

    def __init__(self, predictor: Predictor, views: Iterable[str], points: KeypointSet) -> None:
        super().__init__(predictor, views)
        self._roles = mirrored_roles(len(points), points.flip_pairs)

    def merge(self, plain: Prediction, others: Sequence[Prediction]) -> ViewedPoints:
        found = cast(Landmarks, plain.cpu().finish())
        seen = [self._righted(view, cast(Landmarks, each.cpu().finish()))
                for view, each in zip(self.views, others, strict=True)]  # fmt: skip
        matched = [_same_objects(found, each) for each in seen]
        return ViewedPoints(brought_together(found, np.stack([xy for xy, _ in matched]),
                                             np.stack([score for _, score in matched])))  # fmt: skip

    def _righted(self, view: View, found: Landmarks) -> Landmarks:
        if not view.mirrored:
            return found
        width, order = found.size_hw[1], self._roles
        boxes = found.boxes_xyxy.copy()
        boxes[:, [0, 2]] = width - found.boxes_xyxy[:, [2, 0]]
        return replace(
            found,
            boxes_xyxy=boxes,
            keypoints_xy=_mirrored(found.keypoints_xy[:, order], width),
            keypoint_scores=found.keypoint_scores[:, order],
            visibility=found.visibility[:, order],
        )


def _mirrored(points_xy: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Points (..., 2) with x counted from the right."""
    return np.stack([width - points_xy[..., 0], points_xy[..., 1]], -1)


def _same_objects(found: Landmarks, view: Landmarks) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, K, 2) and scores (n, K) of the objects of ``found`` as another view has them; NaN and 0 if it lacks
    them."""
    points = np.full(found.keypoints_xy.shape, np.nan)
    scores = np.zeros(found.keypoint_scores.shape)
    if len(found) and len(view):
        ious = box_ious(found.boxes_xyxy, view.boxes_xyxy) * (found.labels[:, None] == view.labels[None])
        best = ious.argmax(1)
        is_there = ious.max(1) >= SAME_OBJECT
        points[is_there], scores[is_there] = view.keypoints_xy[best[is_there]], view.keypoint_scores[best[is_there]]
    return points, scores


@dataclass(frozen=True, slots=True)
class _Look:
    """How objects are looked at: by a view, through boxes that are shifted by shares of their sides."""

    view: View = field(default_factory=View)
    shift: tuple[float, float] = (0.0, 0.0)

    def boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(n, 4): those in whose crops objects are as large as the view has them, and as far to the side."""
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 + sides * np.array(self.shift)
        half = sides / 2 / self.view.scale
        return np.concatenate([middle - half, middle + half], 1).astype(np.float32)

    def shown(self, crop: Prepared) -> Prepared:
        """The crop as the network sees it."""
        return replace(crop, pixels=np.ascontiguousarray(crop.pixels[:, ::-1])) if self.view.mirrored else crop


class TopDownTeacher(TopDownPredictor):
    """A top-down model over whole images, from several views of each object.

    Args:
        landmarker: of the model.
        objects: a detector, or where the one object of each image usually is. There the model looks twice: what it
            finds in the usual place says where this object is.
        views: names in ``modelkit.tta.VIEWS`` of what is looked at beside the shifted boxes.
        choice: ``box_score`` and ``box_classes`` of ``TopDownPredictor``.
    """

    def __init__(
        self, landmarker: Predictor, objects: Predictor | UsualPlace, views: Iterable[str] = (), **choice: Any
    ) -> None:
        self._detector = None if isinstance(objects, UsualPlace) else objects
        self._usual = objects if isinstance(objects, UsualPlace) else None
        classes = landmarker.weights.classes[:1] if self._detector is None else self._detector.weights.classes
        super().__init__(landmarker, classes, **choice)
        self._others = [_Look(shift=shift) for shift in SHIFTS] + [_Look(VIEWS[name]) for name in views]
        self._model = cast(Any, landmarker.model)

    def prepare(self, image: Any) -> Prepared:
        """The image as the detector wants it, if there is one; the image itself is kept, objects are cut out of it."""
        pixels = as_pixels(image)
        if self._detector is not None:
            seen = self._detector.prepare(pixels)
            return PreparedScene(seen.pixels, seen.geometry, pixels)
        hw = self._model.network_hw
        return PreparedScene(
            np.zeros((0, 0, 3), np.uint8), Geometry((pixels.shape[0], pixels.shape[1]), hw, hw), pixels
        )

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Objects of all images first, then their points in each view; crops of all images share batches."""
        images = [cast(PreparedScene, each).image_rgb_hwc_u8 for each in prepared]
        boxes = self._boxes(prepared)
        plain = self._look(images, boxes, _Look())
        if self._usual is not None:
            boxes = [self._nearer(found, each) for found, each in zip(plain, boxes, strict=True)]
            plain = self._look(images, boxes, _Look())
        others = [self._look(images, boxes, look) for look in self._others]
        return [
            ViewedPoints(
                brought_together(
                    each,
                    np.stack([view[k].keypoints_xy for view in others]),
                    np.stack([view[k].keypoint_scores for view in others]),
                )
            )
            for k, each in enumerate(plain)
        ]

    def _boxes(self, prepared: Sequence[Prepared]) -> list[FoundBoxes]:
        if self._detector is not None:
            found = [self._detector.finish(raw) for raw in self._detector.infer(prepared)]
            return [
                FoundBoxes(each.boxes_xyxy, each.scores, each.labels).kept(self.box_score, self._labels)
                for each in found
            ]
        assert self._usual is not None
        label = self.weights.classes[0].id
        return [
            FoundBoxes(self._usual.in_picture(each.geometry.source_hw)[None], np.ones(1, np.float32),
                       np.array([label]))
            for each in prepared
        ]  # fmt: skip

    def _nearer(self, found: Landmarks, boxes: FoundBoxes) -> FoundBoxes:
        assert self._usual is not None
        return replace(boxes, boxes_xyxy=self._usual.around(found.keypoints_xy[0], found.size_hw)[None])

    def _look(self, images: Sequence[np.ndarray], boxes: Sequence[FoundBoxes], look: _Look) -> list[Landmarks]:
        """The points of the objects of each image as one view has them, in the order of their boxes, un-warped."""
        crops = [prepare_objects(self, image, look.boxes(each.boxes_xyxy), each.scores, each.labels)
                 for image, each in zip(images, boxes, strict=True)]  # fmt: skip
        waiting = [look.shown(crop) for each in crops for crop in each]
        found: list[LandmarkDetections] = []
        for start in range(0, len(waiting), self.objects_per_batch):
            looked = self.look(waiting[start : start + self.objects_per_batch])
            found += [cast(LandmarkDetections, each.cpu()) for each in looked]
        done = iter([self._righted(*each, look.view) for each in zip(found, waiting, strict=True)])
        return [
            replace(
                gathered([next(done) for _ in each], (image.shape[0], image.shape[1]), self.num_keypoints),
                boxes_xyxy=those.boxes_xyxy.astype(np.float32),
            )
            for image, each, those in zip(images, crops, boxes, strict=True)
        ]

    def _righted(self, found: LandmarkDetections, crop: Prepared, view: View) -> Landmarks:
        carrier = found.finish()
        if not view.mirrored:
            return carrier
        x0, _, x1, _ = cast(Any, crop.geometry).window_xyxy
        order = self._model.roles
        return replace(
            carrier,
            keypoints_xy=_mirrored(carrier.keypoints_xy[:, order], x0 + x1),
            keypoint_scores=carrier.keypoint_scores[:, order],
            visibility=carrier.visibility[:, order],
        )


def teacher(job: JobSpec) -> Predictor:
    """What workers call; see ``JobSpec.predictor_factory``."""
    options, plain = job.predictor_options, load_predictor(job)
    views = options.get("views", ())
    if "detector" in options:
        choice = {name: options[name] for name in ("box_score", "box_classes")}
        detector = detector_of(job)
        return plain.around(lambda each: TopDownTeacher(each, detector, views, **choice))
    if "usual" in options:
        usual = UsualPlace(**{name: tuple(shares) for name, shares in options["usual"].items()})
        return plain.around(lambda each: TopDownTeacher(each, usual, views))
    return plain.around(lambda each: ViewsOfObjects(each, views, points_of(each)))


def points_of(predictor: Predictor) -> KeypointSet:
    """What a model's points are. Raises UsageError where its record does not say."""
    if predictor.weights.keypoints is None:
        raise UsageError(f"nobody wrote down what the points of {predictor.weights.reference} are")
    return predictor.weights.keypoints
