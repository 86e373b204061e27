"""Segments of panoptic maps in the loop, things and stuff: every pixel is of some segment, none is background."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import UsageError
from modelkit import rle
from tasks.evaluation.coco_shapes import size_of
from tasks.labels.label_sets import LabelSet
from tasks.loop.methods import Calibrated, CalibratedFor, LoopMethods
from tasks.loop.selection import Decided, first_reason, floats
from tasks.products.segments.loop_candidates import (
    MIN_AREA_PX,
    box_of,
    example_object,
    example_of,
    examples_by_item,
    taught,
)
from tasks.products.segments.loop_objects import MaskedMethods, calibrate_objects, object_loop
from tasks.products.segments.loop_pixels import LEAST_TRUE_PIXELS, well_seen
from tasks.training.examples import Example
from tasks.training.recipe import TrainingRecipe


def decide_segments(rows: pa.Table) -> Decided:
    """Accepted by certified thresholds, else ignored.

    A segment is right if its IoU with a true one exceeds one half, as panoptic quality counts it. What is not accepted
    teaches nothing. Segments of a map never overlap, and stuff may fill the image. Box and mask of things are taught
    as those of instances.
    """
    t_hi = floats(rows["t_hi"])
    reason = first_reason(
        ("abstain", np.isnan(t_hi)),
        ("too_small", floats(rows["area"]) < MIN_AREA_PX),
        ("below_t_hi", floats(rows["score"]) < t_hi),
    )
    return taught(rows, np.where(reason == "certified", "accept", "ignore"), reason)


def examples_of_segments(labels: pa.Table, things: Collection[int]) -> list[Example]:
    """``pseudo_labels.v2`` of panoptic segments as examples.

    Accepted segments teach their class, things also as objects; pixels of no accepted segment are void, and boxes of
    ignored things are regions without gradient. Images of which nothing was accepted are left out.
    """

    def example(rows: list[dict[str, Any]]) -> Example:
        accepted = [row for row in rows if row["decision"] == "accept"]
        void = np.ones(size_of(rows[0]), bool)
        for row in accepted:
            void &= ~rle.decode(row["rle"], void.shape)
        ignored = (row for row in rows if row["decision"] != "accept" and row["label"] in things)
        return example_of(
            rows,
            objects=tuple(example_object(row) for row in accepted),
            ignore_boxes=tuple(box_of(row) for row in ignored),
            void_rle=rle.encode(void),
        )

    found = examples_by_item(labels, lambda row: True, example)
    return [each for each in found if each.objects]


class SegmentMethods(MaskedMethods):
    """Things and stuff; teachers look as in any job.

    Args:
        things: class ids of things.
    """

    least_truth = f"{LoopMethods.least_truth} or {LEAST_TRUE_PIXELS}"

    def __init__(self, things: Iterable[int]) -> None:
        super().__init__()
        self.things = frozenset(things)

    def watched(self, gate: LabelSet) -> frozenset[str]:
        return super().watched(gate) | well_seen(gate, gate.classes, None)

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        return calibrate_objects(
            candidates,
            calibration,
            by,
            truth_per_image=labelled.truth_per_image(),
            features=(),
            super_classes={each.id: "things" if each.id in self.things else "stuff" for each in calibration.classes},
        )

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_segments(labels, self.things)


def _open(recipe: TrainingRecipe, views: Sequence[str]) -> SegmentMethods:
    if views:
        raise UsageError("panoptic teachers look at one view: segments of several maps are not merged")
    return SegmentMethods(each.id for each in recipe.class_infos if each.is_thing)


SEGMENTS = object_loop(features=(), rule=decide_segments, open=_open)
