"""Keypoint regions of Label Studio: each is one named place; which object it is of has to be found out.

It is of the region that it names as its parent, else of the smallest box that it lies in. Where nobody drew an object
in the whole file, all points of an image are those of one object. An export does not hold the list of names, so points
are in alphabetical order of the names that occur; all are visible, for an export knows nothing else. Places are per
cent of the sides, from the corner of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelkit import rle
from modelkit.carriers.landmarks import VISIBLE, KeypointSet
from tasks.labels.label_sets import LabelledObject
from tasks.labels.losses import Losses
from tasks.labels.points import NOT_GIVEN, Point, box_around, placed, point_set
from tasks.labels.shapes import ShapeError

KIND = "keypointlabels"
ONLY_CLASS = "object"
"""What objects are called of which nothing but points is known."""

_NOBODYS = "point that lies in no object"
BROKEN_POINT = "point that is none (no place, no name, or a name that its object has already)"
_BOTH = "model_then_human"


@dataclass(frozen=True, slots=True)
class NamedPoint:
    """A region that is one point: its name, its place in source pixels, the id of its parent and who made it."""

    name: str
    x: float
    y: float
    parent: Any
    source: str
    where: str


def set_of_regions(regions: Iterable[Mapping[str, Any]]) -> KeypointSet | None:
    """The names of all points of a file; None where there is none."""
    names = {str(name) for region in regions if region.get("type") == KIND
             for name in (region.get("value") or {}).get(KIND) or ()}  # fmt: skip
    return point_set(sorted(names)) if names else None


def named_point(region: Mapping[str, Any], size_hw: tuple[int, int], source: str, where: str) -> NamedPoint:
    """The point of a region. Raises ShapeError for one without place or name."""
    value = region.get("value") or {}
    try:
        x, y = float(value["x"]) * size_hw[1] / 100, float(value["y"]) * size_hw[0] / 100
        return NamedPoint(str(value[KIND][0]), x, y, region.get("parentID"), source, where)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ShapeError(f"a point needs x, y and a label: {error}") from error


def with_points(
    objects: Sequence[LabelledObject],
    points: Sequence[NamedPoint],
    names: KeypointSet,
    size_hw: tuple[int, int],
    losses: Losses,
    only_class: int | None,
) -> list[LabelledObject]:
    """The objects of an image with their points.

    Args:
        objects: ``origin_id`` is the id of their region. points: of the image.
        names: of the label set.
        size_hw: of the image.
        losses: counts points that are of no object.
        only_class: id of the class of objects that nobody drew; None where somebody drew some.
    """
    if only_class is not None and not objects:
        return list(_one_object(points, names, losses, only_class))
    boxes = [_box(each, size_hw) for each in objects]
    owned: dict[int, list[NamedPoint]] = {}
    for point in points:
        owner = _owner(point, objects, boxes)
        if owner is None:
            losses.leave_out(_NOBODYS)
        else:
            owned.setdefault(owner, []).append(point)
    return [replace(each, keypoint_xyv=_in_order(owned.get(k, ()), names, losses)) for k, each in enumerate(objects)]


def _box(each: LabelledObject, size_hw: tuple[int, int]) -> list[float]:
    if each.box_xyxy is not None:
        return list(each.box_xyxy)
    assert each.rle is not None  # an object has a box or a mask
    return [float(value) for value in rle.bbox(each.rle, size_hw)]


def _owner(point: NamedPoint, objects: Sequence[LabelledObject], boxes: Sequence[Sequence[float]]) -> int | None:
    for k, each in enumerate(objects):
        if point.parent is not None and each.origin_id == str(point.parent):
            return k
    around = [
        ((x1 - x0) * (y1 - y0), k)
        for k, (x0, y0, x1, y1) in enumerate(boxes)
        if x0 <= point.x <= x1 and y0 <= point.y <= y1
    ]
    return min(around)[1] if around else None


def _one_object(
    points: Sequence[NamedPoint], names: KeypointSet, losses: Losses, label: int
) -> Iterator[LabelledObject]:
    found = _in_order(points, names, losses)
    if found is not None:
        sources = {each.source for each in points}
        source = sources.pop() if len(sources) == 1 else _BOTH
        yield LabelledObject(label, None, box_around(found), source=source, keypoint_xyv=found)


def _in_order(points: Sequence[NamedPoint], names: KeypointSet, losses: Losses) -> tuple[Point, ...] | None:
    found: dict[str, Point] = {}
    for each in points:
        if each.name in found:
            losses.drop(BROKEN_POINT, f"{each.name!r}, {each.where}")
        found.setdefault(each.name, (each.x, each.y, float(VISIBLE)))
    return placed(found.get(name, NOT_GIVEN) for name in names.names)
