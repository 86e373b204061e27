"""The kind `detection`: objects as boxes."""

from __future__ import annotations

import functools

from tasks.evaluation.object_suspects import object_suspects
from tasks.evaluation.objects import judge_objects
from tasks.product import Kind
from tasks.products.segments import photographs
from tasks.products.segments.objects import box_target, count_classes, wants_tracks
from tasks.products.segments.remarks import detector_remarks
from tasks.report.judged_objects import object_panels

KIND = Kind(
    name="detection",
    product="segments",
    target_of=lambda model: functools.partial(box_target, tracked=wants_tracks(model)),
    judge=functools.partial(judge_objects, with_masks=False),
    recipes={},
    default_recipe="fcos_resnet50_fpn",
    class_counts=count_classes,
    suits=lambda seen: bool(seen.things) and not seen.stuff and seen.with_masks <= 0.5,
    derived=photographs.detection,
    remarks=detector_remarks,
    suspects=object_suspects,
    panels=object_panels,
)
