"""Skeletons and points of CVAT's XML: which points an object has, and where they lie.

A skeleton is an object whose elements are ``points`` of one place each, named by their label; the task lists them with
their parent, and draws their lines as an SVG. Shapes of kind ``points`` that are in a group with one shape of an area
(``group_id``) are points of this object, named by their labels; of a shape of several places each is numbered behind
that name. Without a group a shape of kind ``points`` is an object with numbered points, in files that hold nothing
else; beside other shapes it is left out. CVAT counts from the corner of the top-left pixel, as we do.
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


def grouped(image: Element, area_shapes: Sequence[str]) -> list[tuple[Element, list[Element]]]:
    """The shapes of an image, each with the ``points`` that are its own: of a group that has no other shape of an area.

    Those points are not among the shapes; points of any other group are.
    """
    groups: dict[str, list[Element]] = {}
    for shape in image:
        if shape.get("group_id", "0") != "0":
            groups.setdefault(shape.get("group_id", ""), []).append(shape)
    own: dict[int, list[Element]] = {}  # place of a shape of the image -> its points
    places = {id(shape): place for place, shape in enumerate(image)}
    for shapes in groups.values():
        areas = [each for each in shapes if each.tag in area_shapes]
        if len(areas) == 1:
            own[places[id(areas[0])]] = [each for each in shapes if each.tag == POINTS]
    taken = {places[id(each)] for points in own.values() for each in points}
    return [(shape, own.get(place, [])) for place, shape in enumerate(image) if place not in taken]


def set_of_groups(document: Element, area_shapes: Sequence[str]) -> tuple[KeypointSet, int] | None:
    """The points of all objects that have some by their group, and how many these are; None where none has.

    Names come in the order of the task's labels, those that it does not list in that of the file.
    """
    objects = [points for image in document.iter("image") for _, points in grouped(image, area_shapes) if points]
    most: dict[str, int] = {label.findtext("name") or "": 0 for label in document.iterfind("./meta//labels/label")}
    for shape in (each for points in objects for each in points):
        label = shape.get("label", "")
        most[label] = max(most.get(label, 0), shape.get("points", "").count(";") + 1)
    names = [name for label, count in most.items() for name in _numbered(label, count)]
    return (point_set(list(dict.fromkeys(names))), len(objects)) if objects else None


def labels_of_groups(document: Element, area_shapes: Sequence[str]) -> set[str]:
    """What is a label of points of groups and of nothing else; a task may not say of which kind a label is."""
    points = {id(each) for image in document.iter("image") for _, own in grouped(image, area_shapes) for each in own}
    labels = [(id(each) in points, each.get("label", "")) for each in document.iter()]
    return {label for is_own, label in labels if is_own} - {label for is_own, label in labels if not is_own}


def _numbered(label: str, count: int) -> list[str]:
    return [label][:count] if count < 2 else [f"{label} {k}" for k in range(1, count + 1)]


def points_of_group(shapes: Sequence[Element], points: KeypointSet) -> tuple[Point, ...] | None:
    """The points of an object, which are shapes of its group, in the order of the set; None where none is given.

    Raises:
        ShapeError: a place that is none, or two of one name.
    """
    found: dict[str, Point] = {}
    for shape in shapes:
        label, places = shape.get("label", ""), _pairs(shape)
        names = [label] if label in points.names else _numbered(label, max(2, len(places)))
        for name, (x, y) in zip(names, places, strict=False):
            if name in found:
                raise ShapeError(f"its group has two points {name!r}")
            found[name] = x, y, _visibility(shape)
    return placed(found.get(name, NOT_GIVEN) for name in points.names)


def set_of_document(document: Element, area_shapes: Sequence[str]) -> KeypointSet | None:
    """The points of most skeletons and objects of groups; without them, and without shapes of an area, numbers for
    those of most ``points``."""
    sets, own = sets_of(document), set_of_groups(document, area_shapes)
    counts = Counter(sets[name].names for name, _ in _skeletons(document) if name in sets)
    if own is not None:
        counts[own[0].names] += own[1]
    if counts:
        known = [*sets.values(), *([] if own is None else [own[0]])]
        return max(known, key=lambda each: counts[each.names])
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
    return *places[0], _visibility(shape)


def _visibility(shape: Element) -> float:
    return float(HIDDEN if shape.get("occluded") == "1" else VISIBLE)


def _pairs(shape: Element) -> list[tuple[float, float]]:
    """Raises ShapeError for what are no pairs of numbers."""
    try:
        pairs = [[float(value) for value in pair.split(",")] for pair in shape.get("points", "").split(";")]
        return [(x, y) for x, y in pairs]
    except ValueError as error:
        raise ShapeError(f"points are pairs of numbers: {error}") from error
