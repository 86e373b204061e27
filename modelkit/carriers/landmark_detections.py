"""What a model of landmarks decodes for one image, still as tensors; it finishes as ``Landmarks``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from modelkit.carriers import SizeHW
from modelkit.carriers.landmarks import ABSENT, VISIBLE, Landmarks, Surface


@dataclass(frozen=True, slots=True)
class PastedSurface:
    """A ``Surface`` that still lies on the model's device.

    Args:
        origin_xy: column and row of the source image at which the array begins.
        iuv: (3, h, w) uint8: the part, and 255 times its coordinates u and v.
    """

    origin_xy: tuple[int, int]
    iuv: Tensor

    def finish(self) -> Surface:
        """The carrier."""
        iuv = self.iuv.numpy(force=True)
        return Surface(self.origin_xy, iuv[0], iuv[1:])


@dataclass(frozen=True, slots=True)
class LandmarkDetections:
    """Objects with points, on the model's device, best first.

    Args:
        size_hw: of the source image.
        boxes_xyxy: (n, 4) float32, source pixels, within the image.
        scores: (n,) float32 in [0, 1].
        labels: (n,) long, from 1.
        keypoints_xy: (n, K, 2) float32, source pixels; may leave the image. NaN where a point is absent.
        keypoint_scores: (n, K) float32 in [0, 1].
        meshes: (n, V, 3) float32: x and y in source pixels, depth in the same unit; None of models without a mesh.
            ``Landmarks`` has no place for them, so rows don't either.
        surfaces: n, one for each object; None of models that give none.
    """

    size_hw: SizeHW
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    keypoints_xy: Tensor
    keypoint_scores: Tensor
    meshes: Tensor | None = None
    surfaces: Sequence[PastedSurface] | None = None

    def cpu(self) -> LandmarkDetections:
        """The same on the host."""
        return LandmarkDetections(
            self.size_hw,
            self.boxes_xyxy.cpu(),
            self.scores.cpu(),
            self.labels.cpu(),
            self.keypoints_xy.cpu(),
            self.keypoint_scores.cpu(),
            None if self.meshes is None else self.meshes.cpu(),
            self.surfaces and [replace(each, iuv=each.iuv.cpu()) for each in self.surfaces],
        )

    def finish(self, min_score: float = 0.0) -> Landmarks:
        """Without what scores below ``min_score``; points count as visible: no model here tells which are hidden."""
        points = self.keypoints_xy.float().numpy(force=True)
        present = np.isfinite(points).all(-1)
        found = Landmarks(
            size_hw=self.size_hw,
            boxes_xyxy=self.boxes_xyxy.float().numpy(force=True),
            scores=self.scores.float().numpy(force=True),
            labels=self.labels.numpy(force=True).astype(np.int32),
            keypoints_xy=np.where(present[..., None], points, np.float32(np.nan)),
            keypoint_scores=np.where(present, self.keypoint_scores.float().numpy(force=True), np.float32(0)),
            visibility=np.where(present, VISIBLE, ABSENT).astype(np.uint8),
            surfaces=None if self.surfaces is None else [each.finish() for each in self.surfaces],
        )
        return found.at_least(min_score)
