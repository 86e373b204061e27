"""Training targets of panoptic models: everything the heads want from one labelled map of segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from modelkit.carriers.targets import IGNORE
from modelkit.detection.targets import mask_pixel_weights
from modelkit.errors import TargetError


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
    return {**made, **{name: value for name, value in target.items() if name not in ("panoptic", "segments")}}


def pixel_weights(target: Mapping[str, Any]) -> Tensor | None:
    """(H, W) float: how much each pixel counts, the least of ``semantic_weights`` and what its objects' pixels weigh.

    None where all count fully.
    """
    sure = mask_pixel_weights(target)
    if "semantic_weights" not in target and bool((sure == 1).all()):
        return None
    weights = target.get("semantic_weights", torch.ones_like(target["semantic"], dtype=torch.float32)).clone()
    for mask, weight in zip(target["masks"].bool(), sure.tolist(), strict=True):
        weights[mask] = weights[mask].clamp(max=weight)
    return weights
