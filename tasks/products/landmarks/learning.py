"""What models of points learn from: pictures of single objects for top-down models, and targets with points.

A top-down model looks at one object at a time, so what it learns from one by one are objects, not pictures: each comes
with as much of its surroundings as turning and shifting it may bring into view, in the picture's own pixels or, where
these are finer than what the network sees, reduced to that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from modelkit import VisionModel
from modelkit.landmarks.crops import crop_windows
from modelkit.tiling import Window
from tasks.products.landmarks.surface_learning import surface_fields
from tasks.training.examples import Example, ExampleObject, moved_points

Target = dict[str, Any]
REACH = 1.5
"""Side of what is kept of an object's surroundings, over that of its crop: a square turned by 45 degrees has 1.41."""


def target_of(model: VisionModel) -> Callable[[Example], Target]:
    """Example -> target; points change places in a mirror as the model's own do, and surfaces come with masks."""
    if model.surface_parts:
        return surface_target
    pairs = [tuple(pair) for pair in getattr(model, "flip_pairs", ())]
    return functools.partial(point_target, points=len(model.anonymous_keypoints() or ()), flip_pairs=pairs)


def point_target(example: Example, points: int, flip_pairs: list[tuple[int, int]]) -> Target:
    """``boxes, labels``, weights and ``ignore_boxes``; with points ``keypoints`` and ``flip_pairs``.

    Objects without points have v = 0; those thinner than a pixel become ignored regions.

    Args:
        example: a picture, or an object's piece of one.
        points: that the model has, as many as labelled objects have; 0: it learns boxes alone, whatever these have.
        flip_pairs: points that change places in a mirror.
    """
    kept = [each for each in example.objects if _is_fat(each)]
    thin = [each.box_xyxy for each in example.objects if not _is_fat(each)]
    target = {
        "boxes": torch.tensor([each.box_xyxy for each in kept], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([each.label for each in kept], dtype=torch.int64),
        "class_weights": torch.tensor([each.class_weight for each in kept], dtype=torch.float32),
        "box_weights": torch.tensor([each.box_weight for each in kept], dtype=torch.float32),
        "ignore_boxes": torch.tensor([*example.ignore_boxes, *thin], dtype=torch.float32).reshape(-1, 4),
    }
    if not points:
        return target
    nothing = [(0.0, 0.0, 0.0)] * points
    placed = [each.keypoint_xyv or nothing for each in kept]
    keypoints = torch.tensor(placed, dtype=torch.float32).reshape(-1, points, 3)
    return target | {"keypoints": keypoints, "flip_pairs": flip_pairs}


def surface_target(example: Example) -> Target:
    """As of a model without points, with what its objects teach of their surfaces."""
    kept = [each for each in example.objects if _is_fat(each)]
    return point_target(example, 0, []) | surface_fields(example, kept)


def _is_fat(each: ExampleObject) -> bool:
    x0, y0, x1, y1 = each.box_xyxy
    return x1 - x0 >= 1 and y1 - y0 >= 1


def pieces_of(model: VisionModel) -> Callable[[Example], Iterator[Example]]:
    """What one picture becomes: its objects that have points for a top-down model, itself for others."""
    if not model.top_down:
        return lambda example: iter((example,))
    network_hw = model.transform.padded_hw([(1, 1)])
    return functools.partial(object_pieces, network_hw=network_hw, margin=float(model.config["margin"]))


def object_pieces(example: Example, network_hw: tuple[int, int], margin: float) -> Iterator[Example]:
    """An example for each object that has a labelled point, in pixels of its own window.

    Args:
        example: a whole picture.
        network_hw: rows and columns that the model sees of an object.
        margin: of its crops, see ``crop_windows``.
    """
    for place, each in enumerate(example.objects):
        if _is_fat(each) and any(v for _, _, v in each.keypoint_xyv or ()):
            yield _piece(example, each, place, network_hw, margin)


def _piece(example: Example, each: ExampleObject, place: int, network_hw: tuple[int, int], margin: float) -> Example:
    (x0, y0, x1, y1), (rows, columns) = each.box_xyxy, example.size_hw
    boxes = torch.tensor([each.box_xyxy], dtype=torch.float64)
    left, top, right, bottom = crop_windows(boxes, network_hw, margin * REACH)[0].tolist()
    window = Window(
        max(0, math.floor(top)), max(0, math.floor(left)), min(rows, math.ceil(bottom)), min(columns, math.ceil(right))
    )
    shrunk = min(1.0, network_hw[0] * REACH / (bottom - top))
    height, width = window.size_hw
    moved = replace(
        each,
        box_xyxy=(x0 - window.left, y0 - window.top, x1 - window.left, y1 - window.top),
        rle=None,
        mask_weight=0.0,
        keypoint_xyv=moved_points(each.keypoint_xyv, window),
    )
    return replace(
        example,
        size_hw=window.size_hw,
        objects=(moved,),
        ignore_boxes=(),
        void_rle=None,
        unsure_rle=None,
        window=window,
        picture_hw=example.size_hw,
        piece=place,
        seen_hw=(max(1, round(height * shrunk)), max(1, round(width * shrunk))),
    )
