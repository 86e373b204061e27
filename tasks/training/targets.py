"""From an example to what the losses of a task want. A further task is one more function, named in ``TARGETS``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelkit import VisionModel, rle
from modelkit.augmentation.sample import IGNORE
from tasks.training.examples import Example

Target = dict[str, Any]


def detection_target(example: Example) -> Target:
    """``boxes, labels``, the weights and ``ignore_boxes``; objects thinner than a pixel become ignored regions."""
    boxes = _boxes([each.box_xyxy for each in example.objects])
    fat = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    kept = [each for each, keep in zip(example.objects, fat.tolist(), strict=True) if keep]
    return {
        "boxes": boxes[fat],
        "labels": torch.tensor([each.label for each in kept], dtype=torch.int64),
        "class_weights": torch.tensor([each.class_weight for each in kept], dtype=torch.float32),
        "box_weights": torch.tensor([each.box_weight for each in kept], dtype=torch.float32),
        "ignore_boxes": torch.cat([_boxes(example.ignore_boxes), boxes[~fat]]),
    }


def instance_target(example: Example) -> Target:
    """As for detection, with ``masks``; where only a box is known the mask fills it and weighs nothing."""
    target = detection_target(example)
    boxes = _boxes([each.box_xyxy for each in example.objects])
    fat = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1).tolist()
    kept = [each for each, keep in zip(example.objects, fat, strict=True) if keep]
    masks = np.zeros((len(kept), *example.size_hw), np.uint8)
    for mask, each in zip(masks, kept, strict=True):
        mask[:] = _mask(each.rle, example.size_hw) if each.rle is not None else _filled(each.box_xyxy, example.size_hw)
    weights = [each.mask_weight if each.rle is not None else 0.0 for each in kept]
    return target | {"masks": torch.from_numpy(masks), "mask_weights": torch.tensor(weights, dtype=torch.float32)}


def semantic_target(example: Example, background: int | None) -> Target:
    """``semantic`` and ``semantic_weights``: objects painted one over the other on the background.

    Pixels that no object covers are background, or ignored where the model has none.
    """
    semantic = np.full(example.size_hw, IGNORE if background is None else background, np.int64)
    weights = np.ones(example.size_hw, np.float32)
    for each in example.objects:
        if each.rle is not None:
            mask = _mask(each.rle, example.size_hw)
            semantic[mask], weights[mask] = each.label, each.class_weight
    if example.unsure_rle is not None:
        weights[_mask(example.unsure_rle, example.size_hw)] = 0
    if example.void_rle is not None:
        semantic[_mask(example.void_rle, example.size_hw)] = IGNORE
    return {"semantic": torch.from_numpy(semantic), "semantic_weights": torch.from_numpy(weights)}


def panoptic_target(example: Example, num_things: int) -> Target:
    """As for instances, of the things (class ids 1 .. ``num_things``), and ``semantic``: the class of every pixel.

    Pixels of no object, of crowds and void ones are ignored; where objects overlap, things lie upon stuff.
    """
    things = tuple(each for each in example.objects if each.label <= num_things)
    stuff = tuple(each for each in example.objects if each.label > num_things)
    semantic = np.full(example.size_hw, IGNORE, np.int64)
    for each in (*stuff, *things):
        if each.rle is not None:
            semantic[_mask(each.rle, example.size_hw)] = each.label
    if example.void_rle is not None:
        semantic[_mask(example.void_rle, example.size_hw)] = IGNORE
    target = instance_target(dataclasses.replace(example, objects=things))
    return target | {"semantic": torch.from_numpy(semantic)}


def _panoptic(model: VisionModel) -> Callable[[Example], Target]:
    return functools.partial(panoptic_target, num_things=int(model.num_things))  # type: ignore[arg-type]


def _semantic(model: VisionModel) -> Callable[[Example], Target]:
    return functools.partial(semantic_target, background=getattr(model, "background", 0))


TARGETS: dict[str, Callable[[VisionModel], Callable[[Example], Target]]] = {
    "detection": lambda model: detection_target,
    "instance": lambda model: instance_target,
    "semantic": _semantic,
    "panoptic": _panoptic,
}
"""What the examples of a task become, for a model of it."""


def _boxes(boxes: Any) -> Tensor:
    return torch.tensor(list(boxes), dtype=torch.float32).reshape(-1, 4)


def _mask(run_lengths: bytes, size_hw: tuple[int, int]) -> np.ndarray:
    return rle.decode(run_lengths, size_hw).astype(bool)


def _filled(box: tuple[float, float, float, float], size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, np.uint8)
    x1, y1, x2, y2 = (max(0, round(value)) for value in box)
    mask[y1:y2, x1:x2] = 1
    return mask
