"""Which points are right: of an object that was found, and near enough to where they are.

Objects are taken from the most confident on; each takes the free true object whose box overlaps its own most, by half
or more. Of such an object a point is right where PCK counts it: as far off as the main length's limit at most
(``judging.lengths_of``: .1 of the box's diagonal, unless the points have a better length). Points of an object that
took none are wrong. Points that nobody labelled, those of objects without labelled points, and objects that only
reach a crowd are neither right nor wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import DatasetError
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.label_sets import LabelSet
from tasks.loop.matching import Matches
from tasks.products.landmarks.judging import lengths_of
from tasks.products.landmarks.loop_candidates import Row, by_object
from tasks.products.landmarks.overlaps import box_ious

OBJECT_IOU = 0.5
_COLUMNS = ["image_id", "label", "score", "object", "object_label", "object_score", "box_xyxy", "x", "y"]

Found = tuple[int, float, float, bool, int]
"""Label, score, likeness, whether it is right, and row."""


def match_points(candidates: pa.Table, truth: LabelSet, points: KeypointSet, *, tells_classes: bool) -> Matches:
    """Match all candidates on labelled images with their truth.

    Args:
        candidates: ``candidates.v2`` of these images.
        truth: labels with points of the same names, in any order.
        points: what the candidates' labels are: the first is 1.
        tells_classes: whether an object has to be of the true one's class, too.

    Raises:
        DatasetError: labels without points, or without one of these.
        ValueError: candidates of an image without truth.
    """
    order = _places(points, truth.points)
    rows = truth.table.to_pylist()
    place = {row["image_id"]: k for k, row in enumerate(rows)}
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for position, row in enumerate(candidates.select(_COLUMNS).to_pylist()):
        if row["image_id"] not in place:
            raise ValueError(f"{row['image_id']} has candidates but no truth: it is not in this calibration set")
        by_image[row["image_id"]].append({**row, "row": position})
    found: list[tuple[int, int, float, float, bool, int]] = []
    counts = dict.fromkeys(range(1, len(points) + 1), 0)
    for number, row in enumerate(rows):
        true = _Truth(row, order, points)
        for k, labelled in enumerate((true.xyv[~true.crowd, :, 2] > 0).sum(0).tolist(), 1):
            counts[k] += labelled
        found += [(number, *each) for each in _match_image(by_image[row["image_id"]], true, tells_classes)]
    return Matches.of(found, [row["image_id"] for row in rows], counts)


def _places(points: KeypointSet, labelled: KeypointSet | None) -> list[int]:
    if labelled is None:
        raise DatasetError("no labelled object has points", hint="points are held against labels that have some")
    missing = [name for name in points.names if name not in labelled.names]
    if missing:
        raise DatasetError(
            f"these labels have no point {missing[0]!r}", hint=f"their points are {', '.join(labelled.names)}"
        )
    return [labelled.names.index(name) for name in points.names]


class _Truth:
    """The true objects of an image: boxes (m, 4), labels (m,), crowd (m,) bool, xyv (m, K, 3), and the pixels within
    which each object's points are right (m,)."""

    def __init__(self, row: Row, order: Sequence[int], points: KeypointSet) -> None:
        nothing = [(0.0, 0.0, 0.0)] * (max(order) + 1)
        given = [placed or nothing for placed in row["keypoint_xyv"]]
        self.boxes = np.array(row["boxes_xyxy"], np.float64).reshape(-1, 4)
        self.labels, self.crowd = np.array(row["labels"], np.int64), np.array(row["is_crowd"], bool)
        self.xyv = np.array([[placed[k] for k in order] for placed in given], np.float64).reshape(-1, len(order), 3)
        lengths = lengths_of(points)
        usual = next(each for each in lengths if each.name == "box_diagonal")
        own, other = (each.limit * each.of(self.xyv, self.boxes) for each in (lengths[0], usual))
        self.right_px = np.where(np.isfinite(own), own, other)


def _match_image(candidates: Sequence[Row], true: _Truth, tells_classes: bool) -> Iterator[Found]:
    objects = sorted(by_object(candidates), key=lambda mine: (-mine[0]["object_score"], mine[0]["object"]))
    free = ~true.crowd
    for mine in objects:
        first = mine[0]
        ious = box_ious(np.array([first["box_xyxy"]], np.float64), true.boxes)[0]
        if tells_classes:
            ious = np.where(true.labels == first["object_label"], ious, 0.0)
        best = int(np.argmax(np.where(free, ious, -1.0))) if free.any() else -1
        if best >= 0 and ious[best] >= OBJECT_IOU:
            free[best] = False
            yield from _match_object(mine, true.xyv[best], float(true.right_px[best]))
        elif not (ious[true.crowd] >= OBJECT_IOU).any():
            yield from ((row["label"], row["score"], 0.0, False, row["row"]) for row in mine)


def _match_object(mine: Sequence[Row], xyv: np.ndarray, right_px: float) -> Iterator[Found]:
    for row in mine:
        x, y, v = xyv[row["label"] - 1]
        if v > 0:
            apart = float(np.hypot(row["x"] - x, row["y"] - y)) / right_px
            yield row["label"], row["score"], float(np.exp(-0.5 * apart**2)), apart <= 1.0, row["row"]


def labelled_points(labels: LabelSet, points: KeypointSet) -> dict[str, int]:
    """By name how often each point is labelled, crowds apart."""
    counts = dict.fromkeys(points.names, 0)
    if labels.points is None:
        return counts
    for row in labels.table.to_pylist():
        for placed, crowd in zip(row["keypoint_xyv"], row["is_crowd"], strict=True):
            for name, (_, _, v) in zip(labels.points.names, () if crowd else placed or (), strict=False):
                if name in counts:
                    counts[name] += v > 0
    return counts
