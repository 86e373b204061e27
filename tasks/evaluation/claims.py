"""Labelled objects beside what a model claims of them, whatever the class: who speaks about what.

Of what a model finds at a place the surest counts: its *claim*. A claim and a labelled object that are nearest each
other, and near enough, are about the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from modelkit import Instances
from tasks.evaluation.coco_shapes import boxes_xywh, coco_rles, size_of
from tasks.evaluation.evaluate import Row
from tasks.labels.label_sets import LabelSet

NEAR, SAME = 0.1, 0.5
"""IoU from which two things are about the same object, and from which they lie at the same place."""
_BOXES_COUNT = 0.5  # boxes around thin things overlap more than the things themselves
_SAME_CLASS = 0.1  # what it adds to an overlap: of two objects with one mask, the one whose class is seen is meant

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ObjectEvidence:
    """Labels under the class ids of a model, and what it finds in each image, in the order of their table.

    Args:
        labels, found: these. names: of all classes of the model.
        with_masks: whether masks are compared; else boxes.
    """

    labels: LabelSet
    found: Sequence[Instances]
    names: Mapping[int, str]
    with_masks: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model says of a place.

    Args:
        image: which. score, label, box_xyxy: of what it finds there.
        is_about: whether a labelled object is meant.
        overlap: the largest IoU with a labelled object.
        excused: it lies on a crowd or on void, where nobody knows whether it is right.
    """

    image: int
    score: float
    label: int
    box_xyxy: Box
    is_about: bool
    overlap: float
    excused: bool


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled object that is no crowd.

    Args:
        image: which. object: its place in the row.
        label, box_xyxy, area: as labelled.
        claim: about it; None: there is none.
        iou: with that; 0 without one.
        own: score of what of its own class is found at its place; 0 where nothing is.
        twin: another labelled object at its place, one that has a claim; None: there is none.
    """

    image: int
    object: int
    label: int
    box_xyxy: Box
    area: float
    claim: Claim | None
    iou: float
    own: float
    twin: int | None


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Things in an image; without ``rles`` their boxes are compared."""

    boxes_xyxy: np.ndarray
    rles: Sequence[bytes] | None
    size_hw: tuple[int, int]

    def ious(self, others: _Shapes, crowds: bool = False) -> np.ndarray:
        """(n, m); with ``crowds`` the share of each of these that lies in each of the others."""
        if not len(self.boxes_xyxy) or not len(others.boxes_xyxy):
            return np.zeros((len(self.boxes_xyxy), len(others.boxes_xyxy)))
        sides = [
            boxes_xywh(each.boxes_xyxy.tolist()) if each.rles is None else coco_rles(each.rles, each.size_hw)
            for each in (self, others)
        ]
        return np.asarray(coco_mask.iou(*sides, [int(crowds)] * len(others.boxes_xyxy)))

    def nearness(self, others: _Shapes) -> np.ndarray:
        """(n, m) in [0, 1]: the IoU, or half that of the boxes where it is more."""
        boxes = [_Shapes(each.boxes_xyxy, None, each.size_hw) for each in (self, others)]
        return np.maximum(self.ious(others) if self.rles is not None else 0.0, _BOXES_COUNT * boxes[0].ious(boxes[1]))


def compare(evidence: ObjectEvidence) -> tuple[list[Labelled], list[Claim], bool]:
    """Labelled objects and claims of all images, and whether masks were compared: all of both have one."""
    rows = evidence.labels.table.to_pylist()
    masks = (
        mask is not None or crowd for row in rows for mask, crowd in zip(row["rles"], row["is_crowd"], strict=True)
    )
    with_masks = evidence.with_masks and all(masks) and all(each.rles is not None for each in evidence.found)
    labelled: list[Labelled] = []
    claims: list[Claim] = []
    for image, (row, found) in enumerate(zip(rows, evidence.found, strict=True)):
        mine, said = _compared(image, row, found, with_masks)
        labelled += mine
        claims += said
    return labelled, claims, with_masks


def _compared(image: int, row: Row, found: Instances, with_masks: bool) -> tuple[list[Labelled], list[Claim]]:
    counted = [k for k, crowd in enumerate(row["is_crowd"]) if not crowd]
    truth, seen = _shapes(row, counted, with_masks), _Shapes(found.boxes_xyxy, None, found.size_hw)
    if with_masks:
        seen = _Shapes(found.boxes_xyxy, found.rles, found.size_hw)
    same_class = found.labels[:, None] == np.array([row["labels"][k] for k in counted], np.int64)[None]
    overlap, near = seen.ious(truth), seen.nearness(truth)
    kept = _surest(found.scores, seen.ious(seen) >= SAME)
    about = _pairs(kept, np.where(near >= NEAR, near + _SAME_CLASS * same_class, 0.0))
    excused = _on_crowds(row, seen)
    claims = {
        k: Claim(
            image, float(found.scores[k]), int(found.labels[k]), _box(found.boxes_xyxy[k]), k in about.values(),
            float(overlap[k].max(initial=0.0)), bool(excused[k]),
        )
        for k in kept
    }  # fmt: skip
    own = np.where(same_class & (overlap >= SAME), found.scores[:, None], 0.0).max(0, initial=0.0)
    twins = truth.ious(truth)
    labelled = [
        Labelled(
            image, k, row["labels"][k], _box(row["boxes_xyxy"][k]), float(row["areas"][k]),
            claims[about[at]] if at in about else None, float(overlap[about[at], at]) if at in about else 0.0,
            float(own[at]), next((counted[q] for q in about if q != at and twins[at, q] >= SAME), None),
        )
        for at, k in enumerate(counted)
    ]  # fmt: skip
    return labelled, list(claims.values())


def _shapes(row: Row, places: Sequence[int], with_masks: bool) -> _Shapes:
    boxes = np.array([row["boxes_xyxy"][k] for k in places], np.float64).reshape(-1, 4)
    return _Shapes(boxes, [row["rles"][k] for k in places] if with_masks else None, size_of(row))


def _box(box_xyxy: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return x0, y0, x1, y1


def _surest(scores: np.ndarray, at_one_place: np.ndarray) -> list[int]:
    """Places of what is not where something surer is, the surest first."""
    kept: list[int] = []
    for k in np.argsort(-scores, kind="stable").tolist():
        if not at_one_place[k, kept].any():
            kept.append(k)
    return kept


def _pairs(claims: Sequence[int], near: np.ndarray) -> dict[int, int]:
    """Labelled object -> the claim about it: the nearest first, each at most once; 0 is too far."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    order = np.argsort(-near[list(claims)], axis=None, kind="stable") if claims else np.zeros(0, np.int64)
    for claim, at in (divmod(place, near.shape[1]) for place in order.tolist()):
        k = claims[claim]
        if near[k, at] > 0 and k not in taken and at not in found:
            found[at] = k
            taken.add(k)
    return found


def _on_crowds(row: Row, seen: _Shapes) -> np.ndarray:
    """(n,) whether half or more of each lies in a crowd or on void."""
    crowds = [k for k, crowd in enumerate(row["is_crowd"]) if crowd]
    with_masks = seen.rles is not None and all(row["rles"][k] is not None for k in crowds)
    shapes = seen if with_masks else _Shapes(seen.boxes_xyxy, None, seen.size_hw)
    shares = [shapes.ious(_shapes(row, crowds, with_masks), crowds=True)]
    if row["void_rle"] is not None and seen.rles is not None:
        shares.append(seen.ious(_Shapes(np.zeros((1, 4)), [row["void_rle"]], size_of(row)), crowds=True))
    lies: np.ndarray = np.concatenate(shares, axis=1).max(1, initial=0.0) >= SAME
    return lies
