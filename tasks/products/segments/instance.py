"""The kind `instance`: objects with masks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from modelkit import ClassInfo
from modelkit.training.recipes import digitscape_mask_rcnn
from tasks.product import Kind
from tasks.products.segments.objects import count_classes, judge_objects, mask_target


def _digitscape(classes: Sequence[ClassInfo]) -> Mapping[str, Any]:
    """The shipped model's architecture, for scenes of about 160 pixels."""
    config = {**digitscape_mask_rcnn(1).model}
    return {"architecture": config.pop("name"), "config": config}


def _mask_rcnn(classes: Sequence[ClassInfo]) -> Mapping[str, Any]:
    """torchvision's Mask R-CNN."""
    return {"architecture": "mask_rcnn"}


KIND = Kind(
    name="instance",
    product="segments",
    target_of=lambda model: mask_target,
    judge=functools.partial(judge_objects, with_masks=True),
    recipes={"digitscape": _digitscape, "mask_rcnn": _mask_rcnn},
    default_recipe="digitscape",
    class_counts=count_classes,
)
