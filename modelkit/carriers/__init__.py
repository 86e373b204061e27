"""The carriers between models and the world; shapes are checked at construction.

Letters used in shapes across modelkit: N images, n instances of one image, C channels or classes, H W rows and columns.

**Pixels.** Everywhere, for boxes, masks, maps, optical flow and keypoints alike, x points to the right, y points down,
and (0, 0) is the top-left *corner* of the top-left pixel. The pixel of row r and column c is the square from (c, r) to
(c + 1, r + 1); its centre is (c + 0.5, r + 0.5). It follows that

* a coordinate of an image of one size becomes that of another size by the ratio of the sizes, without an offset;
* the mirror image of x in an image of W columns is W - x;
* the tight box of a mask ends behind its last pixel: one pixel at (r, c) has the box (c, r, c + 1, r + 1);
* maps are resampled by the value at the new pixel's centre (``align_corners=False``, "nearest-exact");
* the flow of a pixel is a difference of two points, so it has no offset; it scales with the size of the image.

Formats that count from pixel centres (COCO's keypoints have (0, 0) at the centre of the top-left pixel) are converted
by what reads and writes them: plus 0.5 on the way in, minus 0.5 on the way out. Boxes are ``xyxy`` in pixels of the
*source* image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from modelkit import rle

SizeHW = tuple[int, int]
"""Rows and columns."""


class Carrier(Protocol):
    """What every carrier of results can tell without saying of what kind it is: the things found in one image."""

    @property
    def size_hw(self) -> SizeHW:
        """Of the source image."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that they hold, about: for limits on bytes in flight."""
        ...

    def __len__(self) -> int:
        """How many things were found."""
        ...

    def chosen(self, places: np.ndarray) -> Carrier:
        """Some of them, in the order of ``places`` ((k,) integers)."""
        ...


@dataclass(frozen=True, slots=True)
class Instances:
    """What a segmentation model found in one image (stuff segments of semantic and panoptic models included).

    Args:
        size_hw: rows and columns of the source image.
        boxes_xyxy: (n, 4) float32, source pixels.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int32 class ids, as in ``Weights.classes``.
        rles: n byte strings: compressed COCO run lengths of the mask on the full ``size_hw`` canvas (column-major, as
            ``pycocotools.mask`` writes ``counts``); None when the model has no masks.
        is_thing: (n,) bool; False marks stuff.
        track_ids: (n,) int64, unique in an image but for -1, which marks what has no identity (stuff); None when the
            model does not track.
        qualities: name of a measured quality of the masks (``q_stability``, ``q_tta``) -> (n,) float32 in [0, 1]; None
            when none was measured.
        at_limit: how many objects the model may find in an image (in a tile of it), where it found as many, so that
            there may be more; None elsewhere.

    Raises:
        ValueError: when lengths or shapes do not agree, with the expected and the actual shape.
    """

    size_hw: SizeHW
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: list[bytes] | None
    is_thing: np.ndarray
    track_ids: np.ndarray | None = None
    qualities: Mapping[str, np.ndarray] | None = None
    at_limit: int | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        expected: dict[str, tuple[int, ...]] = {"boxes_xyxy": (n, 4), "scores": (n,), "labels": (n,), "is_thing": (n,)}
        if self.track_ids is not None:
            expected["track_ids"] = (n,)
        given = {name: getattr(self, name) for name in expected} | dict(self.qualities or {})
        for name, values in given.items():
            shape, actual = expected.get(name, (n,)), values.shape
            if actual != shape:
                raise ValueError(f"{name} must have shape {shape} for {n} instances, got {actual}")
        if self.rles is not None and len(self.rles) != n:
            raise ValueError(f"rles must hold {n} masks for {n} instances, got {len(self.rles)}")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def nbytes(self) -> int:
        """Memory that they hold, about: for limits on bytes in flight."""
        masks = sum(map(len, self.rles or ())) + 40 * len(self.rles or ())
        return masks + self.boxes_xyxy.nbytes + 32 * len(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an item's row says of them beside the columns."""
        return () if self.at_limit is None else (f"detections: the limit of {self.at_limit} was reached",)

    def chosen(self, places: np.ndarray) -> Instances:
        """Some of them, in the order of ``places`` ((k,) integers)."""
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=self.boxes_xyxy[places],
            scores=self.scores[places],
            labels=self.labels[places],
            rles=None if self.rles is None else [self.rles[k] for k in places.tolist()],
            is_thing=self.is_thing[places],
            track_ids=None if self.track_ids is None else self.track_ids[places],
            qualities=self.qualities and {name: values[places] for name, values in self.qualities.items()},
            at_limit=self.at_limit,
        )

    def at_least(self, min_score: float) -> Instances:
        """Those whose score is not below ``min_score``."""
        keep = self.scores >= min_score
        return self if keep.all() else self.chosen(np.flatnonzero(keep))

    def masks(self) -> np.ndarray:
        """(n, H, W) bool, the masks as pixels.

        Raises:
            ValueError: of a model without masks.
        """
        if self.rles is None:
            raise ValueError("these instances are boxes without masks")
        decoded = [rle.decode(each, self.size_hw) for each in self.rles]
        return np.stack(decoded).astype(bool) if decoded else np.zeros((0, *self.size_hw), bool)

    @classmethod
    def from_masks(
        cls, masks: np.ndarray, scores: Sequence[float], labels: Sequence[int], *, is_thing: bool = True
    ) -> Instances:
        """Instances of their masks alone; boxes are the tight ones.

        Args:
            masks: (n, H, W) bool or 0 and 1; n may be 0.
            scores: n numbers in [0, 1].
            labels: n class ids.
            is_thing: False for stuff.
        """
        if masks.ndim != 3:
            raise ValueError(f"masks must be (n, H, W), got {masks.shape}")
        size_hw = (masks.shape[1], masks.shape[2])
        rles = [rle.encode(mask.astype(np.uint8)) for mask in masks]
        boxes = rle.bboxes(rles, size_hw).astype(np.float32) if rles else np.zeros((0, 4), np.float32)
        things = np.full(len(rles), is_thing)
        return cls(size_hw, boxes, np.asarray(scores, np.float32), np.asarray(labels, np.int32), rles, things)

    @classmethod
    def empty(cls, size_hw: SizeHW) -> Instances:
        """An image in which nothing was found."""
        return cls(
            size_hw=size_hw,
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int32),
            rles=[],
            is_thing=np.zeros(0, bool),
        )
