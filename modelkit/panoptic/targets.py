"""Training targets of panoptic models: checks, and everything the heads want from one labelled map of segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from modelkit.errors import TargetError
from modelkit.semantic.segmentor import IGNORE


def complete_target(target: Mapping[str, Any]) -> dict[str, Any]:
    """A target with ``semantic``, ``boxes``, ``labels`` and ``masks``; missing ones follow from ``panoptic``.

    Args:
        target: either has all four, or ``panoptic`` (H, W) long segment ids with ``segments``: per segment a mapping
            with ``id``, ``label``, ``isthing`` and perhaps ``iscrowd``, as in COCO. Pixels of no listed segment are
            unlabelled, and so are the pixels of crowds.
    """
    wanted = {"semantic", "boxes", "labels", "masks"}
    if wanted <= target.keys():
        return dict(target)
    if not {"panoptic", "segments"} <= target.keys():
        raise TargetError(
            f"a panoptic target needs {sorted(wanted)}, or 'panoptic' with 'segments'; got {sorted(target)}"
        )
    panoptic = target["panoptic"]
    semantic = torch.full_like(panoptic, IGNORE)
    labels, masks = [], []
    for segment in target["segments"]:
        if segment.get("iscrowd"):
            continue
        mask = panoptic == segment["id"]
        semantic[mask] = segment["label"]
        if segment["isthing"] and mask.any():
            labels.append(segment["label"])
            masks.append(mask)
    stacked = torch.stack(masks) if masks else panoptic.new_zeros((0, *panoptic.shape), dtype=torch.bool)
    boxes = masks_to_boxes(stacked)
    boxes[:, 2:] += 1  # the last pixel's far border
    made = {
        "semantic": semantic,
        "boxes": boxes.float(),
        "labels": torch.tensor(labels, dtype=torch.int64, device=panoptic.device),
        "masks": stacked.to(torch.uint8),
    }
    return {**made, **target}


def check_semantic(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int) -> None:
    """Refuse semantic maps of another size or type, or with ids beyond ``num_classes`` (255 is no id).

    Raises:
        TargetError: names the image's index and what was found.
    """
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        semantic = target["semantic"]
        if semantic.shape != image.shape[-2:] or semantic.dtype != torch.int64:
            raise TargetError(
                f"target {index}: semantic must be {tuple(image.shape[-2:])} long, got {tuple(semantic.shape)} "
                f"{semantic.dtype}"
            )
        found = semantic[semantic != IGNORE]
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) <= num_classes:
            raise TargetError(f"target {index}: class ids must lie in 0 .. {num_classes} or be {IGNORE}")


def padded_semantic(targets: Sequence[Mapping[str, Any]], padded_hw: Sequence[int]) -> Tensor:
    """(N, *padded_hw) long class ids of targets in resized pixels; the padding is unlabelled."""
    device = targets[0]["semantic"].device
    semantic = torch.full((len(targets), *padded_hw), IGNORE, dtype=torch.int64, device=device)
    for slot, target in zip(semantic, targets, strict=True):
        rows, columns = target["semantic"].shape
        slot[:rows, :columns] = target["semantic"]
    return semantic
