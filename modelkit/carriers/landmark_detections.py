"""What a model of landmarks decodes for one image, still as tensors; it finishes as ``Landmarks``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from modelkit.carriers import SizeHW
from modelkit.carriers.landmarks import ABSENT, VISIBLE, Landmarks


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
    """

    size_hw: SizeHW
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    keypoints_xy: Tensor
    keypoint_scores: Tensor
    meshes: Tensor | None = None

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
        )
        return found.at_least(min_score)
