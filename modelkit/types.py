"""The carriers between models and the world; shapes are checked at construction.

Letters used in shapes across modelkit: N images, n instances of one image, C channels or classes, H W rows and columns.
Boxes are always ``xyxy`` in pixels of the *source* image: x to the right, y down, (0, 0) is the top-left corner of the
top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    Raises:
        ValueError: when lengths or shapes do not agree, with the expected and the actual shape.
    """

    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: list[bytes] | None
    is_thing: np.ndarray
    track_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        expected: dict[str, tuple[int, ...]] = {"boxes_xyxy": (n, 4), "scores": (n,), "labels": (n,), "is_thing": (n,)}
        if self.track_ids is not None:
            expected["track_ids"] = (n,)
        for name, shape in expected.items():
            actual = getattr(self, name).shape
            if actual != shape:
                raise ValueError(f"{name} must have shape {shape} for {n} instances, got {actual}")
        if self.rles is not None and len(self.rles) != n:
            raise ValueError(f"rles must hold {n} masks for {n} instances, got {len(self.rles)}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, size_hw: tuple[int, int]) -> Instances:
        """An image in which nothing was found."""
        return cls(
            size_hw=size_hw,
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int32),
            rles=[],
            is_thing=np.zeros(0, bool),
        )
