"""Models of one's own that know colours: what they find in a picture is known by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from modelkit import ClassInfo, FunctionPredictor, Instances, Predictor
from tasks.labels.points import point_set
from tests.tasks.products.landmarks.test_point_suspects import predictor

EVIL = "<script>alert(1)</script>"
CLASSES = (ClassInfo(1, "cup"), ClassInfo(2, EVIL))
POINTS = point_set([EVIL, "heel", "middle"])


def find(image: np.ndarray) -> Instances:
    """Red is a cup, green the other thing."""
    masks = np.stack([image[..., channel] > 200 for channel in (0, 1)])
    seen = masks.any((1, 2))
    return Instances.from_masks(masks[seen], scores=np.full(seen.sum(), 0.9), labels=np.array([1, 2])[seen])


def _of_kind(kind: str, **model: Any) -> Callable[[Any], FunctionPredictor]:
    def function(job: Any) -> FunctionPredictor:
        made = FunctionPredictor(find, CLASSES, kind=kind)
        made.model = SimpleNamespace(**model)  # type: ignore[attr-defined]
        return made

    function.kind = kind  # type: ignore[attr-defined]
    return function


objects = _of_kind("instance")
boxes = _of_kind("detection")
corners = _of_kind("keypoints", anonymous_keypoints=lambda: None, surface_parts=0)  # one without points
maps = _of_kind("semantic", background=0, config={"num_classes": 3})
segments = _of_kind("panoptic", tracks=False)


def points(job: Any) -> Predictor:
    """Sees each of three points by its colour."""
    plain = predictor()
    named = Predictor(plain.model, replace(plain.weights, keypoints=POINTS))
    named.rows_digest = None  # type: ignore[assignment]  # the digest of the code is what counts
    return named


points.kind = "keypoints"  # type: ignore[attr-defined]
