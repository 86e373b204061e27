"""Composed scenes as models learn from them: an image and a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelkit.digitscape import Digitscape, Scene, SceneStyle

_MIN_SIDE_PX = 3  # thinner visible parts are no objects


def image_of(scene: Scene) -> Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(scene.image_rgb).permute(2, 0, 1).float() / 255


def objects_of(scene: Scene) -> dict[str, Any]:
    """Boxes, classes, masks and tracks of the digits."""
    sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    keep = np.flatnonzero(sides.min(axis=1) >= _MIN_SIDE_PX) if len(scene) else np.zeros(0, np.int64)
    return {
        "boxes": torch.from_numpy(scene.boxes_xyxy[keep]),
        "labels": torch.from_numpy(scene.labels[keep].astype(np.int64)),
        "masks": torch.from_numpy(scene.masks[keep].astype(np.uint8)),
        "track_ids": torch.from_numpy(scene.track_ids[keep].astype(np.int64)),
    }


def digits_of(scene: Scene) -> Tensor:
    """(H, W) long: 1 .. 10 on digits, else 0."""
    return torch.from_numpy(np.where(scene.instance_map > 0, scene.semantic_map, 0).astype(np.int64))


def panoptic_of(scene: Scene) -> dict[str, Any]:
    """The objects, and the class of every pixel, stuff included."""
    return {**objects_of(scene), "semantic": torch.from_numpy(scene.semantic_map.astype(np.int64))}


def two_digits(size_hw: tuple[int, int], size_px: tuple[int, int]) -> Scene:
    """A scene of two large digits that do not touch."""
    style = SceneStyle(
        digits=(2, 2), empty_share=0.0, size_px=size_px, overlap=0.0, noise_std=0.0, blur_share=0.0,
        threshold=(0.15, 0.2),
    )  # fmt: skip
    source = Digitscape("train", size_hw, style=style, dense=False)
    return next(each for each in map(source.scene, range(50)) if len(each) == 2)


def dotted_faces(size_hw: tuple[int, int], boxes: list[list[float]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Grey discs with five coloured dots, (3, H, W), and their target: boxes, labels 1 and the five points."""
    rows, columns = (torch.arange(side) + 0.5 for side in size_hw)
    image = torch.full((3, *size_hw), 0.2)
    places = torch.tensor([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]])
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
    corners = torch.tensor(boxes)
    points = corners[:, None, :2] + places * (corners[:, None, 2:] - corners[:, None, :2])
    for (x1, y1, x2, y2), dots in zip(boxes, points.tolist(), strict=True):
        across, down = (columns - (x1 + x2) / 2) / ((x2 - x1) / 2), (rows - (y1 + y2) / 2) / ((y2 - y1) / 2)
        image[:, down[:, None] ** 2 + across**2 < 1] = 0.7
        for (x, y), colour in zip(dots, colours, strict=True):
            dot = ((rows - y)[:, None] ** 2 + (columns - x) ** 2) < ((x2 - x1) / 10) ** 2
            image[:, dot] = colour[:, None]
    keypoints = torch.cat([points, torch.full((*points.shape[:2], 1), 2.0)], -1)
    return image, {"boxes": corners, "labels": torch.ones(len(boxes), dtype=torch.int64), "keypoints": keypoints}
