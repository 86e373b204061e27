"""Targets that hold a class for every pixel: their checks, and maps of different sizes as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelkit.carriers.targets import IGNORE
from modelkit.errors import TargetError


def check_semantic(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int) -> None:
    """Refuse maps of another size or type, or with ids that are neither 0 .. ``num_classes`` - 1 nor 255.

    Args:
        images: each (3, H, W).
        targets: as many, each with ``semantic``.
        num_classes: 0 included.

    Raises:
        TargetError: names the image's index and what was found.
    """
    if len(targets) != len(images):
        raise TargetError(f"{len(images)} images need as many targets, got {len(targets)}")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        semantic = target["semantic"]
        if semantic.shape != image.shape[-2:] or semantic.dtype != torch.int64:
            raise TargetError(
                f"target {index}: semantic must be {tuple(image.shape[-2:])} long, got {tuple(semantic.shape)} "
                f"{semantic.dtype}"
            )
        found = semantic[semantic != IGNORE]
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < num_classes:
            raise TargetError(f"target {index}: class ids must lie in 0 .. {num_classes - 1} or be {IGNORE}")


def padded(maps: Sequence[Tensor], padded_hw: Sequence[int], fill: float) -> Tensor:
    """Maps (h, w) of resized images as one (N, *padded_hw); what they leave is ``fill``."""
    batch = maps[0].new_full((len(maps), *padded_hw), fill)
    for slot, each in zip(batch, maps, strict=True):
        slot[: each.shape[0], : each.shape[1]] = each
    return batch
