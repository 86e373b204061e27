"""The kind `instance`: objects with masks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from modelkit import ClassInfo
from tasks.evaluation.object_suspects import object_suspects
from tasks.evaluation.objects import judge_objects
from tasks.product import Kind
from tasks.products.segments import digitscape, photographs
from tasks.products.segments.loop_objects import OBJECTS
from tasks.products.segments.objects import count_classes, mask_target, wants_tracks
from tasks.products.segments.remarks import detector_remarks
from tasks.report.judged_objects import object_panels


def _mask_rcnn(classes: Sequence[ClassInfo]) -> Mapping[str, Any]:
    """torchvision's Mask R-CNN."""
    return {"architecture": "mask_rcnn"}


KIND = Kind(
    name="instance",
    product="segments",
    target_of=lambda model: functools.partial(mask_target, tracked=wants_tracks(model)),
    judge=functools.partial(judge_objects, with_masks=True),
    recipes={
        "digitscape": digitscape.detector,
        "digitscape_mask_rcnn": digitscape.shipped,
        "digitscape_yolact": digitscape.yolact,
        "mask_rcnn": _mask_rcnn,
    },
    default_recipe="digitscape",
    class_counts=count_classes,
    suits=lambda seen: bool(seen.things) and not seen.stuff and seen.with_masks > 0.5,
    derived=photographs.instance,
    remarks=detector_remarks,
    suspects=object_suspects,
    panels=object_panels,
    loop=OBJECTS,
)
