"""What a recipe of a detector makes of labels, in words: whether its anchors fit, and whether an image may have enough.

An anchor learns an object that it overlaps well enough. Where few objects are overlapped by any, a detector trains and
finds little, and nothing else says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modelkit.transform import ImageTransform
from tasks.training.inspection import Inspection
from tasks.training.recipe import TrainingRecipe

IOUS = (0.5, 0.6, 0.7)
_CHUNK = 100_000  # objects that are compared with all anchors at once


def detector_remarks(seen: Inspection, recipe: TrainingRecipe) -> list[str]:
    """Sentences for ``visionmill inspect``; none where the model has no anchors of its own."""
    return [*_on_anchors(seen, recipe.config), *_on_limits(seen, recipe.config)]


def _on_anchors(seen: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    rpn, boxes = config.get("rpn", {}), thing_boxes(seen)
    if "anchor_sizes" not in rpn or not len(boxes):
        return
    transform = ImageTransform(**config.get("transform", {}))
    hw = (round(seen.median_hw[0]), round(seen.median_hw[1]))
    if transform.tile is not None:  # a larger picture is looked at tile by tile
        hw = (min(hw[0], transform.tile[0]), min(hw[1], transform.tile[0]))
    seen_hw = transform.resized_hw(hw)
    sizes = [side for sides in rpn["anchor_sizes"] for side in sides]
    fits = anchor_fit(boxes * (min(seen_hw) / min(hw)), sizes, rpn.get("aspect_ratios", (0.5, 1.0, 2.0)))
    shares = ", ".join(f"{share:.0%} at an IoU of {iou:.1f}" for iou, share in zip(IOUS, fits, strict=True))
    yield f"objects that an anchor overlaps, looked at as {seen_hw[0]} x {seen_hw[1]} px: {shares}"


def _on_limits(seen: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    most = config.get("heads", {}).get("box", {}).get("detections_per_image")
    fullest = int(seen.per_image.max(initial=0))
    if most is not None and fullest:
        word = "" if most >= fullest else "; those beyond are lost"
        yield f"an image may have {most} objects, the fullest labelled one has {fullest}{word}"


def anchor_fit(boxes_wh: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """Share of the objects that an anchor at their place overlaps, for each of ``IOUS``.

    Args:
        boxes_wh: (n, 2) width and height, n > 0, pixels of the network.
        sizes: of anchors, the root of their areas, pixels.
        ratios: of height to width.
    """
    anchors = np.array([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    best = np.concatenate([_best(boxes_wh[at : at + _CHUNK], anchors) for at in range(0, len(boxes_wh), _CHUNK)])
    return [float((best >= iou).mean()) for iou in IOUS]


def _best(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(n,) IoU with the anchor that fits best, about the same centre."""
    common = np.minimum(boxes[:, None], anchors[None]).prod(2)
    union = boxes.prod(1)[:, None] + anchors.prod(1)[None] - common
    best: np.ndarray = (common / union).max(1)
    return best


def thing_boxes(seen: Inspection) -> np.ndarray:
    """(objects, 2) width and height of countable objects of at least a pixel, source pixels."""
    fat = (seen.boxes_wh >= 1).all(1) & seen.is_thing
    return seen.boxes_wh[fat]
