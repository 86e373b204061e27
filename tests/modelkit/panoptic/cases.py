"""Regions and geometries written by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from modelkit.panoptic import PanopticMap, Regions
from modelkit.transform import Geometry


def plain(height: int, width: int) -> Geometry:
    """An image that is neither resized nor padded."""
    return Geometry((height, width), (height, width), (height, width))


def regions(boxes: list[list[float]], scores: list[float], labels: list[int], masks: Tensor | None = None) -> Regions:
    """Regions whose masks fill their boxes unless given (n, M, M) logits."""
    filled = torch.full((len(boxes), 28, 28), 20.0) if masks is None else masks
    return Regions(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        filled,
    )


def sizes(found: PanopticMap) -> list[tuple[int, bool, int]]:
    """(class, whether a thing, pixels) of each segment."""
    counts = torch.bincount(found.segment_map.flatten().long(), minlength=len(found) + 1)[1:]
    return list(zip(found.labels.tolist(), found.is_thing.tolist(), counts.tolist(), strict=True))


def one_hot_logits(channels: Tensor, num_channels: int, strength: float = 9.0) -> Tensor:
    """(C, H, W) logits that say ``channels`` (H, W)."""
    return torch.nn.functional.one_hot(channels, num_channels).permute(2, 0, 1).float() * strength
