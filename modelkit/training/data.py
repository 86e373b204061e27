"""Batches of freshly composed scenes; a batch is a pure function of step and process, so resume is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelkit.digitscape import Digitscape, Scene


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Images with what the losses need.

    Args:
        images: (N, 3, H, W) float32 in [0, 1].
        targets: per image ``boxes`` (n, 4) float32 xyxy, ``labels`` (n,) long from 1, ``masks`` (n, H, W) uint8,
            and ``track_ids`` (n,) long: within a clip an object keeps its number.
        semantic: (N, H, W) long, 0 background and 1..10 digits.
    """

    images: Tensor
    targets: list[dict[str, Tensor]]
    semantic: Tensor


def collate(scenes: Sequence[Scene], min_side_px: float = 3.0) -> SceneBatch:
    """Stack scenes of one size; slivers thinner than ``min_side_px`` are no targets (evaluation still counts them)."""
    images = torch.from_numpy(np.stack([scene.image_rgb for scene in scenes])).permute(0, 3, 1, 2)
    semantic = np.stack([np.concatenate([[0], scene.labels])[scene.instance_map] for scene in scenes])
    return SceneBatch(
        images=images.to(torch.float32) / 255,
        targets=[_target(scene, min_side_px) for scene in scenes],
        semantic=torch.from_numpy(semantic.astype(np.int64)),
    )


def _target(scene: Scene, min_side_px: float) -> dict[str, Tensor]:
    sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    keep = np.flatnonzero(sides.min(axis=1) >= min_side_px) if len(scene) else np.zeros(0, np.int64)
    return {
        "boxes": torch.from_numpy(scene.boxes_xyxy[keep]),
        "labels": torch.from_numpy(scene.labels[keep].astype(np.int64)),
        "masks": torch.from_numpy(scene.masks[keep].astype(np.uint8)),
        "track_ids": torch.from_numpy(scene.track_ids[keep].astype(np.int64)),
    }


@dataclass(frozen=True, slots=True)
class SceneBatches:
    """Composes batches on the fly, never the same scene twice.

    Args:
        source: endless supply of scenes.
        batch_size: images per process and step.
        num_ranks: processes that share the work.
        min_side_px: see ``collate``.
    """

    source: Digitscape
    batch_size: int
    num_ranks: int = 1
    min_side_px: float = 3.0

    def batch(self, step: int, rank: int = 0) -> SceneBatch:
        """The batch of a step in a process."""
        first = (step * self.num_ranks + rank) * self.batch_size
        return collate([self.source.scene(first + k) for k in range(self.batch_size)], self.min_side_px)
