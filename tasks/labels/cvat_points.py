"""Skeletons and points of CVAT's XML: which points an object has, and where they lie.

A skeleton is an object whose elements are ``points`` of one place each, named by their label; the task lists them with
their parent, and draws their lines as an SVG. A shape of kind ``points`` is an object with numbered points, in files
that hold nothing else; beside other shapes it is left out. CVAT counts from the corner of the top-left pixel, as we do.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence

from modelkit.carriers.landmarks import HIDDEN, VISIBLE, KeypointSet
from tasks.labels.points import NOT_GIVEN, Point, placed, point_set
from tasks.labels.shapes import ShapeError

Element = ElementTree.Element
SKELETON, POINTS = "skeleton", "points"
_SVG_TAG, _SVG_VALUE = re.compile(r"<(\w+)([^>]*)>"), re.compile(r'([\w-]+)="([^"]*)"')


def sets_of(document: Element) -> dict[str, KeypointSet]:
    """Label of skeletons -> their points, as the task lists them, else in the order in which they first occur."""
    labels = list(document.iterfind("./meta//labels/label"))
    listed: dict[str, list[str]] = {}
    for label in labels:
        if (parent := label.findtext("parent")) is not None:
            listed.setdefault(parent, []).append(label.findtext("name") or "")
    for name, skeleton in _skeletons(document):
        if name not in listed:
            listed[name] = [each.get("label", "") for each in skeleton.iter(POINTS)]
    drawings = {label.findtext("name") or "": label.findtext("svg") or "" for label in labels}
    return {
        name: point_set(list(dict.fromkeys(points)), skeleton=_lines(drawings.get(name, "")))
        for name, points in listed.items()
    }


def _skeletons(document: Element) -> Iterator[tuple[str, Element]]:
    for track in document.iter("track"):
        yield from ((track.get("label", ""), each) for each in track.iter(SKELETON))
    for image in document.iter("image"):
        yield from ((each.get("label", ""), each) for each in image.iter(SKELETON))


def _lines(drawing: str) -> list[tuple[str, str]]:
    """Names of the ends of each line of a skeleton's SVG."""
    tags = [(tag, dict(_SVG_VALUE.findall(values))) for tag, values in _SVG_TAG.findall(drawing)]
    names = {each.get("data-node-id"): each.get("data-label-name", "") for tag, each in tags if tag == "circle"}
    ends = ((each.get("data-node-from"), each.get("data-node-to")) for tag, each in tags if tag == "line")
    return [(names[one], names[other]) for one, other in ends if one in names and other in names]


def set_of_document(document: Element, area_shapes: Sequence[str]) -> KeypointSet | None:
    """The points of most skeletons; without skeletons and shapes of an area, numbers for those of most ``points``."""
    sets = sets_of(document)
    counts = Counter(sets[name].names for name, _ in _skeletons(document) if name in sets)
    if counts:
        return max(sets.values(), key=lambda each: counts[each.names])
    if any(each.tag in area_shapes for each in document.iter()):
        return None
    lengths = Counter(each.get("points", "").count(";") + 1 for each in document.iter(POINTS))
    return KeypointSet.numbered(lengths.most_common(1)[0][0]) if lengths else None


def points_of(shape: Element, points: KeypointSet) -> tuple[Point, ...] | None:
    """The points of a skeleton or of a shape of kind ``points``, in the order of the set; None where none is given.

    Raises:
        ShapeError: an element that is no single place, or another number of points.
    """
    if shape.tag == POINTS:
        places = _pairs(shape)
        if len(places) != len(points):
            raise ShapeError(f"it has {len(places)} points, most have {len(points)}")
        return placed((x, y, VISIBLE) for x, y in places)
    found = {each.get("label", ""): _element(each) for each in shape.iter(POINTS)}
    return placed(found.get(name, NOT_GIVEN) for name in points.names)


def _element(shape: Element) -> Point:
    if shape.get("outside") == "1":
        return NOT_GIVEN
    places = _pairs(shape)
    if len(places) != 1:
        raise ShapeError(f"the element {shape.get('label')!r} of a skeleton has {len(places)} places")
    return *places[0], float(HIDDEN if shape.get("occluded") == "1" else VISIBLE)


def _pairs(shape: Element) -> list[tuple[float, float]]:
    """Raises ShapeError for what are no pairs of numbers."""
    try:
        pairs = [[float(value) for value in pair.split(",")] for pair in shape.get("points", "").split(";")]
        return [(x, y) for x, y in pairs]
    except ValueError as error:
        raise ShapeError(f"points are pairs of numbers: {error}") from error
