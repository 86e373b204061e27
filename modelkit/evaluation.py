"""COCO average precision of a predictor on digitscape, computed by pycocotools.

The published difficulty is ``Digitscape(split, (160, 160), seed)`` with the default style; the shipped model's
record and its tests use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelkit.carriers import Instances
from modelkit.digitscape import Digitscape
from modelkit.digitscape.coco import coco_annotations, coco_categories, coco_image
from modelkit.metrics.precision import Precision, coco_results, precision_of

Predict = Callable[[list[np.ndarray]], Sequence[Instances]]
"""RGB uint8 HWC arrays in, instances in source pixels out; every ``Predictor`` is one."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mask and box precision over a number of scenes."""

    mask: Precision
    box: Precision
    num_scenes: int
    num_objects: int


def evaluate_digitscape(
    predict: Predict, source: Digitscape, num_scenes: int, *, first: int = 0, batch_size: int = 8
) -> Evaluation:
    """Run a predictor over scenes ``first .. first + num_scenes`` and let pycocotools judge it.

    Args:
        predict: what to judge.
        source: split, size, seed and style of the scenes.
        num_scenes: at least 1.
        first: index of the first scene.
        batch_size: images per call of ``predict``.
    """
    if num_scenes < 1:
        raise ValueError(f"num_scenes must be at least 1, got {num_scenes}")
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": coco_categories(), "info": {}}
    found: list[dict[str, Any]] = []
    for start in range(first, first + num_scenes, batch_size):
        scenes = [source.scene(k) for k in range(start, min(start + batch_size, first + num_scenes))]
        for offset, (scene, instances) in enumerate(
            zip(scenes, predict([scene.image_rgb for scene in scenes]), strict=True)
        ):
            image_id = start + offset + 1
            truth["images"].append(coco_image(image_id, scene, f"{image_id}.png"))
            truth["annotations"] += coco_annotations(image_id, scene, len(truth["annotations"]) + 1)
            found += coco_results(image_id, instances)
    mask, box = precision_of(truth, found, "segm"), precision_of(truth, found, "bbox")
    return Evaluation(mask, box, num_scenes, len(truth["annotations"]))
