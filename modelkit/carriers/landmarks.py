"""Objects with points on them: the carrier of models that find landmarks, and what their points are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelkit.carriers import SizeHW
from modelkit.carriers.faces68 import FLIP_PAIRS, is_ibug

ABSENT, HIDDEN, VISIBLE = 0, 1, 2
"""COCO's v: the point is not given, given though something covers it, given and seen."""

_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def mirrored_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(left, right) indices of points whose names differ in that word alone: left_eye and right_eye, LEar and REar.

    68 numbered points are taken for those of iBUG's faces.
    """
    if is_ibug(names):
        return FLIP_PAIRS
    words = [tuple(word.lower() for word in _WORDS.findall(name)) for name in names]
    place = {each: k for k, each in enumerate(words)}
    mirrored = [tuple(_OTHER_SIDE.get(word, word) for word in each) for each in words]
    return tuple(
        (k, place[other])
        for k, (each, other) in enumerate(zip(words, mirrored, strict=True))
        if other != each and other in place and _is_left(each)
    )


def _is_left(words: Sequence[str]) -> bool:
    return next(word for word in words if word in _OTHER_SIDE) in ("left", "l")


@dataclass(frozen=True, slots=True)
class KeypointSet:
    """What the K points of an object are; weights record it.

    Args:
        names: of the points, in the order of the arrays.
        flip_pairs: (left, right) indices that change places in a mirror.
        skeleton: (from, to) indices of the lines that are drawn.
        sigmas: of COCO's OKS: how far annotators are apart, over the root of the object's area; empty: nobody measured.

    Raises:
        ValueError: names that occur twice, an index that is no point's, sigmas of another number or not positive.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(set(self.names)) != count:
            raise ValueError(
                f"keypoints are called alike: {sorted({n for n in self.names if self.names.count(n) > 1})}"
            )
        wrong = [index for pair in (*self.flip_pairs, *self.skeleton) for index in pair if not 0 <= index < count]
        if wrong:
            raise ValueError(f"flip pairs and skeleton name points from 0 to {count - 1}, got {sorted(set(wrong))}")
        paired = [index for pair in self.flip_pairs for index in pair]
        if len(set(paired)) != len(paired):
            raise ValueError(f"a point has more than one partner in a mirror: {self.flip_pairs}")
        if self.sigmas and (len(self.sigmas) != count or min(self.sigmas) <= 0):
            raise ValueError(f"{count} positive sigmas are needed, or none, got {self.sigmas}")

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {key: [list(each) if isinstance(each, tuple) else each for each in value]
                for key, value in asdict(self).items()}  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KeypointSet:
        """The set again; raises ValueError or TypeError for what makes none."""
        pairs = {key: tuple((int(a), int(b)) for a, b in value.get(key, ())) for key in ("flip_pairs", "skeleton")}
        sigmas = tuple(float(each) for each in value.get("sigmas", ()))
        if unknown := sorted(set(value) - {"names", "flip_pairs", "skeleton", "sigmas"}):
            raise ValueError(f"a set of keypoints has no {', '.join(unknown)}")
        return cls(tuple(str(name) for name in value["names"]), **pairs, sigmas=sigmas)

    @classmethod
    def numbered(cls, count: int) -> KeypointSet:
        """Points of which nobody said what they are."""
        return cls(tuple(f"point {k}" for k in range(1, count + 1)))


@dataclass(frozen=True, slots=True)
class Surface:
    """Which part of a surface the pixels of one object show, and where on it (DensePose's IUV; Güler et al. 2018).

    Args:
        origin_xy: column and row of the source image at which the arrays begin.
        parts: (h, w) uint8, 0 where the object is not.
        uv: (2, h, w) uint8, 255 times the coordinates on the part, 0 where there is none.
    """

    origin_xy: tuple[int, int]
    parts: np.ndarray
    uv: np.ndarray

    def __post_init__(self) -> None:
        if self.parts.ndim != 2 or self.uv.shape != (2, *self.parts.shape):
            raise ValueError(f"a surface needs parts (h, w) and uv (2, h, w), got {self.parts.shape}, {self.uv.shape}")
        if self.parts.dtype != np.uint8 or self.uv.dtype != np.uint8:
            raise ValueError(f"parts and uv must be uint8, got {self.parts.dtype} and {self.uv.dtype}")

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.parts.nbytes + self.uv.nbytes


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Objects that a landmark model found in one image, each with the same K points.

    Args:
        size_hw: rows and columns of the source image.
        boxes_xyxy: (n, 4) float32, source pixels.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int32 class ids, as in ``Weights.classes``.
        keypoints_xy: (n, K, 2) float32, source pixels as ``modelkit.carriers`` counts them; NaN where a point is
            absent. K is 0 for models that find boxes alone.
        keypoint_scores: (n, K) float32 in [0, 1], 0 where a point is absent.
        visibility: (n, K) uint8, among ``ABSENT``, ``HIDDEN`` and ``VISIBLE``.
        surfaces: n, one for each object; None when the model gives none.
        track_ids: (n,) int64, unique in an image but for -1, of objects that are no track's; None when nobody tracks.
        keypoint_set: what the K points are, as the weights' record says; None where nobody said it.
        agreement: (n, K) float32 in [0, 1], how near each point was found in other views of the image; 0 where it is
            absent, None where none were looked at.

    Raises:
        ValueError: when shapes do not agree, or a point is absent in one array and not in another.
    """

    size_hw: SizeHW
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    keypoints_xy: np.ndarray
    keypoint_scores: np.ndarray
    visibility: np.ndarray
    surfaces: Sequence[Surface] | None = None
    track_ids: np.ndarray | None = None
    keypoint_set: KeypointSet | None = None
    agreement: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, points = len(self.scores), self.keypoint_scores.shape[-1]
        expected = {
            "boxes_xyxy": (n, 4), "scores": (n,), "labels": (n,), "keypoints_xy": (n, points, 2),
            "keypoint_scores": (n, points), "visibility": (n, points),
        }  # fmt: skip
        if self.track_ids is not None:
            expected["track_ids"] = (n,)
        if self.agreement is not None:
            expected["agreement"] = (n, points)
        for name, shape in expected.items():
            if (actual := getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape} for {n} objects of {points} points, got {actual}")
        if self.surfaces is not None and len(self.surfaces) != n:
            raise ValueError(f"surfaces must be {n}, one for each object, got {len(self.surfaces)}")
        if self.keypoint_set is not None and len(self.keypoint_set) != points:
            raise ValueError(f"keypoint_set must name {points} points, got {len(self.keypoint_set)}")
        if not np.array_equal(np.isfinite(self.keypoints_xy).all(-1), self.visibility > ABSENT):
            raise ValueError("keypoints_xy must be NaN exactly where visibility says that a point is absent")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def nbytes(self) -> int:
        """Memory that they hold, about: for limits on bytes in flight."""
        surfaces = sum(each.nbytes for each in self.surfaces or ())
        points = self.keypoints_xy.nbytes + self.keypoint_scores.nbytes + self.visibility.nbytes
        return surfaces + points + self.boxes_xyxy.nbytes + 32 * len(self)

    def chosen(self, places: np.ndarray) -> Landmarks:
        """Some of them, in the order of ``places`` ((k,) integers)."""
        return Landmarks(
            size_hw=self.size_hw,
            boxes_xyxy=self.boxes_xyxy[places],
            scores=self.scores[places],
            labels=self.labels[places],
            keypoints_xy=self.keypoints_xy[places],
            keypoint_scores=self.keypoint_scores[places],
            visibility=self.visibility[places],
            surfaces=None if self.surfaces is None else [self.surfaces[k] for k in places.tolist()],
            track_ids=None if self.track_ids is None else self.track_ids[places],
            keypoint_set=self.keypoint_set,
            agreement=None if self.agreement is None else self.agreement[places],
        )

    def at_least(self, min_score: float) -> Landmarks:
        """Those whose score is not below ``min_score``."""
        keep = self.scores >= min_score
        return self if keep.all() else self.chosen(np.flatnonzero(keep))

    @classmethod
    def empty(cls, size_hw: SizeHW, points: int) -> Landmarks:
        """An image in which nothing was found, by a model of so many points."""
        return cls(
            size_hw,
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
            np.zeros((0, points, 2), np.float32),
            np.zeros((0, points), np.float32),
            np.zeros((0, points), np.uint8),
        )
