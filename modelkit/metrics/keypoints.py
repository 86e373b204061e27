"""How similar found keypoints are to true ones, as COCO defines it (cocodataset.org/#keypoints-eval)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of COCO's 17 keypoints of people, nose to ankles: how far annotators are apart, over the root of the person's area.
COCO_PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


def object_keypoint_similarity(
    found_xy: np.ndarray,
    true_xyv: np.ndarray,
    areas: np.ndarray,
    boxes_xyxy: np.ndarray,
    sigmas: Sequence[float] = COCO_PERSON_SIGMAS,
) -> np.ndarray:
    """OKS of every found object with every true one: the mean of exp(-d^2 / (2 area (2 sigma)^2)) over its keypoints.

    Args:
        found_xy: (n, K, 2 or more) pixels; further columns are not looked at.
        true_xyv: (m, K, 3), v > 0 where a keypoint is labelled; only those count.
        areas: (m,) of the true objects, pixels; of their masks, as COCO's files state them.
        boxes_xyxy: (m, 4) around the true objects. Where no keypoint of an object is labelled all found ones count
            by how far they are outside of its box with a margin as wide and as high as the box on every side.
        sigmas: of the K keypoints.

    Returns:
        (n, m) in [0, 1].
    """
    found = np.asarray(found_xy, np.float64)[:, None, :, :2]
    true = np.asarray(true_xyv, np.float64)[None]
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(1, -1, 1, 4)
    margin = boxes[..., 2:] - boxes[..., :2]
    outside = np.maximum(0, boxes[..., :2] - margin - found) + np.maximum(0, found - boxes[..., 2:] - margin)
    is_labelled = np.greater(true[..., 2:], 0)
    is_bare = ~np.any(is_labelled, axis=2, keepdims=True)
    apart = np.where(is_bare, outside, found - true[..., :2])
    scale = 2 * (2 * np.asarray(sigmas, np.float64)) ** 2 * (np.asarray(areas, np.float64)[:, None] + np.spacing(1))
    counts = (is_labelled | is_bare)[..., 0]
    return (np.exp(-(apart**2).sum(-1) / scale) * counts).sum(-1) / counts.sum(-1)
