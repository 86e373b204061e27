"""What a composed scene is: the image and every ground truth the tasks need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelkit.digitscape.errors import DigitscapeError
from modelkit.digitscape.glyphs import LANDMARK_NAMES


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its truth. Instances are ordered from back to front: a later one covers an earlier one.

    Args:
        image_rgb: (H, W, 3) uint8.
        instance_map: (H, W) uint8; 0 is background, k + 1 the visible part of instance k.
        labels: (n,) int32 in 1..10, digit + 1.
        boxes_xyxy: (n, 4) float32, the tight box of the visible part; right and bottom are exclusive pixel borders.
        visibility: (n,) float32, visible pixels over all pixels of the digit (also those outside the image).
        track_ids: (n,) int64, the same digit has the same id in every frame of a clip; 0, 1, ... in a single scene.
        landmarks: (n, 5, 3) float32 of x, y in pixels (pixel centres at integers) and v: 2 visible, 1 covered or
            outside of the image; order as ``LANDMARK_NAMES``.
        stuff_map: (H, W) uint8 stuff ids of the background, also beneath digits.
        uv: (H, W, 2) float32, position inside the visible digit's own upright tight box (0 left or top, 1 right or
            bottom), NaN on background; None when the scene was composed without dense truth.
        flow_to_next: (H, W, 2) float32, displacement (dx, dy) in pixels of what is seen here to the next frame;
            None in a clip's last frame, in single scenes and without dense truth.
    """

    image_rgb: np.ndarray
    instance_map: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray
    visibility: np.ndarray
    track_ids: np.ndarray
    landmarks: np.ndarray
    stuff_map: np.ndarray
    uv: np.ndarray | None = None
    flow_to_next: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        size_hw = self.image_rgb.shape[:2]
        expected = {
            "image_rgb": (*size_hw, 3),
            "instance_map": size_hw,
            "stuff_map": size_hw,
            "boxes_xyxy": (n, 4),
            "visibility": (n,),
            "track_ids": (n,),
            "landmarks": (n, len(LANDMARK_NAMES), 3),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise DigitscapeError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.image_rgb.shape[0], self.image_rgb.shape[1]

    @property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool, the visible part of each instance."""
        return self.instance_map[None] == np.arange(1, len(self) + 1, dtype=np.uint8)[:, None, None]

    @property
    def semantic_map(self) -> np.ndarray:
        """(H, W) uint8 class ids: 1..10 on digits, stuff ids elsewhere."""
        lookup = np.concatenate([[0], self.labels]).astype(np.uint8)
        return np.where(self.instance_map > 0, lookup[self.instance_map], self.stuff_map)

    @property
    def panoptic_map(self) -> np.ndarray:
        """(H, W) int32: class id * 1000 + (k + 1) on instance k, class id * 1000 on stuff."""
        return self.semantic_map.astype(np.int32) * 1000 + self.instance_map

    def panoptic_array(self, divisor: int) -> np.ndarray:
        """(H, W) int64 as ``modelkit.metrics`` wants it: class id * divisor + (track id + 1) on digits, + 0 on stuff.

        Within a clip a digit keeps its value; in single scenes track ids number the digits.
        """
        numbers = np.concatenate([[0], self.track_ids + 1])
        return self.semantic_map.astype(np.int64) * divisor + numbers[self.instance_map]

    def surface_points(self, count: int, seed: int = 0) -> np.ndarray:
        """(n, count, 5) float32 of x, y, part, u and v: pixels of each digit drawn at random, as targets hold them.

        The part is the digit's class, u and v are those of ``uv``; (0, 0) is the corner of the first pixel here. A
        digit of fewer pixels has all of them, and parts of -1 behind.

        Raises:
            DigitscapeError: for a scene without dense truth.
        """
        if self.uv is None:
            raise DigitscapeError("surface points need a scene with dense truth: Digitscape(..., dense=True)")
        rng, points = np.random.default_rng(seed), np.full((len(self), count, 5), -1, np.float32)
        for row, label, mask in zip(points, self.labels, self.masks, strict=True):
            places = np.argwhere(mask)
            rows, columns = rng.permutation(places)[:count].T
            found = np.stack([columns + 0.5, rows + 0.5, np.full(len(rows), label), *self.uv[rows, columns].T], 1)
            row[: len(rows)] = found
        return points
