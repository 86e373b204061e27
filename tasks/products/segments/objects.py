"""What the kinds that find objects share: targets of boxes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelkit import ClassInfo, VisionModel, rle
from tasks.evaluation.coco_shapes import filled_box
from tasks.training.examples import Box, Example, ExampleObject

Target = dict[str, Any]


def count_classes(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """``num_classes``: one more than the largest id, for 0 is none of them."""
    return {"num_classes": max(each.id for each in classes) + 1}


def wants_tracks(model: VisionModel) -> bool:
    """Whether a model learns who is who in two frames."""
    return "track_ids" in (model.reference_fields or ())


def box_target(example: Example, *, tracked: bool = False) -> Target:
    """``boxes, labels``, the weights and ``ignore_boxes``; objects thinner than a pixel become ignored regions.

    With ``tracked``, ``track_ids`` come along where all objects have one.
    """
    kept, thin = _by_thickness(example)
    tracks = [each.track_id for each in kept if each.track_id is not None]
    is_tracked = tracked and len(tracks) == len(kept)
    target = {"track_ids": torch.tensor(tracks, dtype=torch.int64)} if is_tracked else {}
    return target | {
        "boxes": _boxes(each.box_xyxy for each in kept),
        "labels": torch.tensor([each.label for each in kept], dtype=torch.int64),
        "class_weights": torch.tensor([each.class_weight for each in kept], dtype=torch.float32),
        "box_weights": torch.tensor([each.box_weight for each in kept], dtype=torch.float32),
        "ignore_boxes": _boxes([*example.ignore_boxes, *(each.box_xyxy for each in thin)]),
    }


def mask_target(example: Example, *, tracked: bool = False) -> Target:
    """As ``box_target``, with ``masks``; where only a box is known the mask fills it and weighs nothing."""
    kept, _ = _by_thickness(example)
    masks = np.zeros((len(kept), *example.size_hw), np.uint8)
    for mask, each in zip(masks, kept, strict=True):
        known = each.rle
        mask[:] = filled_box(each.box_xyxy, mask.shape) if known is None else rle.decode(known, mask.shape)
    weights = [each.mask_weight if each.rle is not None else 0.0 for each in kept]
    masked = {"masks": torch.from_numpy(masks), "mask_weights": torch.tensor(weights, dtype=torch.float32)}
    return box_target(example, tracked=tracked) | masked


def _by_thickness(example: Example) -> tuple[list[ExampleObject], list[ExampleObject]]:
    """Objects of at least a pixel in width and height, and the others."""
    boxes = _boxes(each.box_xyxy for each in example.objects)
    fat = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1).tolist()
    kept, thin = ([each for each, is_fat in zip(example.objects, fat, strict=True) if is_fat is wanted]
                  for wanted in (True, False))  # fmt: skip
    return kept, thin


def _boxes(boxes: Iterable[Box]) -> Tensor:
    return torch.tensor(list(boxes), dtype=torch.float32).reshape(-1, 4)
