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
