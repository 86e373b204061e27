"""Label sets from CVAT's own XML: "CVAT for images 1.1" and "CVAT for video 1.1" (tracks over a video)."""

from __future__ import annotations

import functools
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infra.errors import DatasetError
from infra.store import open_store, resolve_name, split_uri
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.class_map import ClassMap, FileClass, map_classes
from tasks.labels.cvat_points import (
    POINTS,
    SKELETON,
    grouped,
    labels_of_groups,
    points_of,
    points_of_group,
    set_of_document,
    set_of_groups,
    sets_of,
)
from tasks.labels.images import find_images_root
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.losses import NO_BOX, Losses
from tasks.labels.points import BROKEN_POINTS, OF_ANOTHER_SET, box_around
from tasks.labels.shapes import (
    BoxError,
    ShapeError,
    box_mask_to_rle,
    box_xyxy,
    ellipse_to_rle,
    polygons_to_rle,
    rectangle_to_rle,
)

Element = ElementTree.Element
_SHAPES = ("polygon", "mask", "box", "ellipse")
_NO_AREA = ("polyline", POINTS, "tag", "attribute")  # nothing of them can be segmented
# CVAT's attribute says who drew the shape; an automatic one that a person kept stays the model's
_SOURCES = {"manual": "human", "auto": "model", "semi-auto": "model_then_human", "consensus": "human"}


def read_cvat(
    uri: str,
    *,
    images_root: str | None = None,
    classes: Sequence[FileClass] | None = None,
    video_uri: str | None = None,
) -> LabelSet:
    """The label set of an export.

    Args:
        uri: ``annotations.xml``.
        images_root: what image names are relative to; found by :func:`tasks.labels.images.find_images_root`.
        classes: use these, by name; without, the labels of the task have the ids 1, 2, ... in its own order, whether
            they occur or not, those of skeletons last. A file without such a list has them in alphabetical order.
        video_uri: of a video export, the video; else its name in the XML below the images' root.

    Returns:
        In a video, only frames with a shape are labelled: the XML does not say whether the others were looked at.

    Raises:
        DatasetError: no such export, a document type in it, or nothing usable.
    """
    root_uri, key = split_uri(uri)
    document = _parsed(open_store(root_uri).get(key), uri)
    points = set_of_document(document, _SHAPES)
    others = [name for name, each in sets_of(document).items() if points is None or each.names != points.names]
    numbered = points is not None and not any(each.tag in (*_SHAPES, SKELETON) for each in document.iter())
    own = set_of_groups(document, _SHAPES)
    same = own is not None and points is not None and own[0].names == points.names
    known = map_classes(_classes(document, numbered), classes)
    reader = _Reader(known, Losses(), points, others, numbered=numbered, grouped=same)
    names = [each.get("name", "") for each in document.iter("image")] or [document.findtext(".//source") or ""]
    folder = find_images_root(uri, names, images_root)
    items = [*_images(document, folder, reader), *_tracks(document, folder, reader, video_uri)]
    return make_label_set(items, reader.known.classes, origin_format="cvat", losses=reader.losses, points=reader.points)


def _classes(document: Element, numbered: bool) -> list[FileClass]:
    """The labels of the task, project or job that objects can have; else the names that occur.

    Those of skeletons come last, so that the others have the ids that they had before skeletons were read. With
    ``numbered`` those of points are objects, too. Labels that name nothing but points of groups are none.
    """
    named = labels_of_groups(document, _SHAPES)
    labels = [each for each in document.iterfind("./meta//labels/label") if each.find("parent") is None]
    kinds = {each.findtext("name") or "": each.findtext("type") for each in labels}
    listed = [name for name, kind in kinds.items() if kind not in (*_NO_AREA, SKELETON) and name not in named]
    listed += [name for name, kind in kinds.items() if kind == SKELETON]
    if numbered:
        listed += [name for name, kind in kinds.items() if kind == POINTS]
    shown = (POINTS, "track") if numbered else (*_SHAPES, SKELETON, "track")
    occurring = sorted({shape.get("label", "") for shape in document.iter() if shape.tag in shown})
    return [FileClass(name) for name in dict.fromkeys(listed or occurring) if name]


def _parsed(data: bytes, uri: str) -> Element:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can grow without end or name files; CVAT writes none
        raise DatasetError(f"{uri} declares a document type, which no export of CVAT does")
    try:
        document = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DatasetError(f"{uri} is no XML: {error}") from error
    if document.tag != "annotations":
        raise DatasetError(f"{uri} is no CVAT export: it begins with <{document.tag}>")
    return document


def _images(document: Element, folder: str, reader: _Reader) -> Iterator[LabelledItem]:
    for image in document.iter("image"):
        name = resolve_name(folder, image.get("name", ""))
        if name is None or not image.get("name"):
            raise DatasetError(f"the image {image.get('name')!r} leads out of the bucket, or has no name")
        size_hw = _size(image.get("height"), image.get("width"), name)
        objects: list[LabelledObject] = []
        for shape, points in grouped(image, _SHAPES):
            found = reader.object(shape, shape.get("label", ""), size_hw, f"image {name}")
            if found is not None:
                objects.append(reader.with_points(found, points, f"image {name}"))
        yield LabelledItem(name, size_hw, tuple(objects))


def _size(height: str | None, width: str | None, name: str) -> tuple[int, int]:
    """Raises DatasetError for what is no size."""
    try:
        size_hw = int(height or 0), int(width or 0)
    except ValueError:
        size_hw = 0, 0
    if min(size_hw) < 1:
        raise DatasetError(f"{name} has no size in the XML: height {height}, width {width}")
    return size_hw


def _tracks(document: Element, folder: str, reader: _Reader, video_uri: str | None) -> Iterator[LabelledItem]:
    tracks = document.findall("track")
    if not tracks:
        return
    size = document.find(".//original_size")
    stated = document.findtext(".//source")
    source = video_uri or resolve_name(folder, stated or "")
    if size is None or not source or not (video_uri or stated):
        raise DatasetError("a CVAT export of a video needs <original_size> and <source>", hint="Give the video's URI.")
    size_hw = _size(size.findtext("height"), size.findtext("width"), source)
    frames: dict[int, list[LabelledObject]] = {}
    for number, track in enumerate(tracks):
        for shape in track:
            if shape.get("outside") == "1":
                continue
            where = f"frame {shape.get('frame')} of track {track.get('id')}"
            found = reader.object(shape, track.get("label", ""), size_hw, where, (number, track))
            if found is not None:
                frames.setdefault(_whole(shape.get("frame"), 0), []).append(found)
    for frame, objects in sorted(frames.items()):
        yield LabelledItem(source, size_hw, tuple(objects), frame=frame)


def _whole(text: str | None, default: int) -> int:
    """A whole number of the XML, or what stands for one that is none."""
    return int(text) if text is not None and text.strip().isdecimal() else default


@dataclass(frozen=True, slots=True)
class _Reader:
    """Shapes -> objects; what cannot be read is counted.

    Args:
        known, losses: classes and counts of the file.
        points: of its objects; None where none has any.
        others: labels of skeletons that have other points.
        numbered: whether shapes of kind "points" are objects: where there are no others.
        grouped: whether the points are those of groups.
    """

    known: ClassMap
    losses: Losses
    points: KeypointSet | None = None
    others: Sequence[str] = ()
    numbered: bool = False
    grouped: bool = False

    def object(
        self, shape: Element, name: str, size_hw: tuple[int, int], where: str, track: tuple[int, Element] | None = None
    ) -> LabelledObject | None:
        """The object of one shape.

        Args:
            shape: the element. name: its label's.
            size_hw: of the image. where: it is, for counts.
            track: place and element of its track.
        """
        if shape.tag in _NO_AREA and not (shape.tag == POINTS and self.numbered):
            self.losses.leave_out(f"shape of kind {shape.tag}")
        elif shape.tag == SKELETON and name in self.others:
            self.losses.leave_out(OF_ANOTHER_SET)
        elif shape.tag not in (*_SHAPES, SKELETON, POINTS):
            self.losses.drop(f"shape of kind {shape.tag}", where)
        elif name not in self.known.ids:
            self.losses.drop("shape with an unknown label", f"{name!r}, {where}")
        elif (label := self.known.ids[name]) is None:
            self.losses.leave_out("shape of a class that was not asked for")
        else:
            return self._object(shape, label, size_hw, where, track)
        return None

    def with_points(self, found: LabelledObject, shapes: Sequence[Element], where: str) -> LabelledObject:
        """The object with the points of its group, if it has any."""
        if not shapes:
            return found
        if self.points is None or not self.grouped:
            self.losses.leave_out(OF_ANOTHER_SET)
            return found
        try:
            return replace(found, keypoint_xyv=points_of_group(shapes, self.points))
        except ShapeError as error:
            self.losses.drop(BROKEN_POINTS, f"{where}: {error}")
            return found

    def _object(
        self, shape: Element, label: int, size_hw: tuple[int, int], where: str, track: tuple[int, Element] | None
    ) -> LabelledObject | None:
        try:
            has_points = shape.tag in (SKELETON, POINTS)
            points = points_of(shape, self.points) if has_points and self.points is not None else None
            if has_points and points is None:
                self.losses.leave_out(f"{shape.tag} without a point that is given")
                return None
            box, mask = (box_around(points or ()), None) if has_points else (_box(shape), _mask(shape, size_hw))
        except BoxError as error:
            self.losses.drop(NO_BOX, f"{where}: {error}")
            return None
        except (ShapeError, TypeError, ValueError) as error:
            self.losses.drop("shape that cannot be drawn", f"{shape.tag} in {where}: {error}")
            return None
        origin = shape if track is None else track[1]
        return LabelledObject(
            label=label,
            rle=mask,
            box_xyxy=box,
            track_id=None if track is None else _whole(track[1].get("id"), track[0]),
            source=_SOURCES.get(origin.get("source", "manual"), "human"),
            origin_id=origin.get("id", ""),
            keypoint_xyv=points,
        )


def _number(shape: Element, name: str) -> float:
    return float(shape.get(name) or "nan")


def _box(shape: Element) -> tuple[float, float, float, float] | None:
    """The box as it was drawn; None for other shapes and turned boxes, whose masks tell. Raises BoxError."""
    if shape.tag != "box":
        return None
    x0, y0, x1, y1 = (_number(shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    box = box_xyxy(x0, y0, x1 - x0, y1 - y0)
    return None if float(shape.get("rotation") or 0.0) else box


def _mask(shape: Element, size_hw: tuple[int, int]) -> bytes:
    number = functools.partial(_number, shape)
    if shape.tag == "polygon":
        pairs = (pair.split(",") for pair in shape.get("points", "").split(";"))
        return polygons_to_rle([[float(value) for pair in pairs for value in pair]], size_hw)
    if shape.tag == "mask":
        counts = [int(value) for value in shape.get("rle", "").split(",")]
        left, top, width, height = (int(number(name)) for name in ("left", "top", "width", "height"))
        return box_mask_to_rle(counts, left, top, width, height, size_hw)
    turn = float(shape.get("rotation") or 0.0)
    if shape.tag == "ellipse":
        return ellipse_to_rle((number("cx"), number("cy")), (number("rx"), number("ry")), turn, size_hw)
    x0, y0, x1, y1 = (number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
    if turn:
        return _turned_box((x0, y0, x1, y1), turn, size_hw)
    return rectangle_to_rle((x0, y0), (x1 - x0, y1 - y0), 0.0, size_hw)


def _turned_box(box: tuple[float, float, float, float], degrees: float, size_hw: tuple[int, int]) -> bytes:
    """CVAT turns a box about its centre, :func:`rectangle_to_rle` about its corner: move the corner first."""
    x0, y0, x1, y1 = box
    half_x, half_y = (x1 - x0) / 2, (y1 - y0) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corner = (x0 + half_x - cos * half_x + sin * half_y, y0 + half_y - sin * half_x - cos * half_y)
    return rectangle_to_rle(corner, (x1 - x0, y1 - y0), degrees, size_hw)
