"""Label sets from CVAT's own XML: "CVAT for images 1.1" and "CVAT for video 1.1" (tracks over a video)."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from infra.errors import DatasetError
from infra.store import absolute_uri, folder_of, open_store, resolve_name, split_uri
from modelkit import ClassInfo
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.shapes import (
    ShapeError,
    box_mask_to_rle,
    ellipse_to_rle,
    polygons_to_rle,
    rectangle_to_rle,
)

Element = ElementTree.Element
_SHAPES = ("polygon", "mask", "box", "ellipse")
# CVAT's attribute says who drew the shape; an automatic one that a person kept stays the model's
_SOURCES = {"manual": "human", "auto": "model", "semi-auto": "model_then_human", "consensus": "human"}


def read_cvat(
    uri: str,
    *,
    images_root: str | None = None,
    classes: Sequence[ClassInfo] | None = None,
    video_uri: str | None = None,
) -> LabelSet:
    """The label set of an export.

    Args:
        uri: ``annotations.xml``.
        images_root: what image names are relative to; the XML's own folder unless given.
        classes: what the labels' names mean; without, names get the ids 1, 2, ... in alphabetical order.
        video_uri: of a video export, the video; else its name in the XML below the images' root.

    Returns:
        In a video, only frames with a shape are labelled: the XML does not say whether the others were looked at.
        ``skipped`` counts shapes that are not used.

    Raises:
        DatasetError: no such export, a document type in it, or nothing usable.
    """
    root_uri, key = split_uri(uri)
    document = _parsed(open_store(root_uri).get(key), uri)
    names = sorted({shape.get("label", "") for shape in document.iter() if shape.tag in (*_SHAPES, "track")} - {""})
    classes = classes if classes is not None else [ClassInfo(k + 1, name) for k, name in enumerate(names)]
    ids = {each.name: each.id for each in classes}
    folder = absolute_uri(images_root) if images_root else folder_of(uri)
    skipped: Counter[str] = Counter()
    items = list(_images(document, folder, ids, skipped)) + list(_tracks(document, folder, ids, skipped, video_uri))
    return make_label_set(items, classes, origin_format="cvat", skipped=skipped)


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


def _images(document: Element, folder: str, ids: Mapping[str, int], skipped: Counter[str]) -> Iterator[LabelledItem]:
    for image in document.iter("image"):
        name = resolve_name(folder, image.get("name", ""))
        if name is None or not image.get("name"):
            raise DatasetError(f"the image {image.get('name')!r} leads out of the bucket, or has no name")
        size_hw = (int(image.get("height", 0)), int(image.get("width", 0)))
        shapes = [_object(shape, shape.get("label", ""), size_hw, ids, skipped) for shape in image]
        yield LabelledItem(name, size_hw, tuple(shape for shape in shapes if shape is not None))


def _tracks(
    document: Element, folder: str, ids: Mapping[str, int], skipped: Counter[str], video_uri: str | None
) -> Iterator[LabelledItem]:
    tracks = document.findall("track")
    if not tracks:
        return
    size = document.find(".//original_size")
    source = video_uri or resolve_name(folder, document.findtext(".//source") or "")
    if size is None or not source or not (video_uri or document.findtext(".//source")):
        raise DatasetError("a CVAT export of a video needs <original_size> and <source>", hint="Give the video's URI.")
    size_hw = (int(size.findtext("height") or 0), int(size.findtext("width") or 0))
    frames: dict[int, list[LabelledObject]] = {}
    for track in tracks:
        for shape in track:
            if shape.get("outside") == "1":
                continue
            found = _object(shape, track.get("label", ""), size_hw, ids, skipped, track)
            if found is not None:
                frames.setdefault(int(shape.get("frame", 0)), []).append(found)
    for frame, objects in sorted(frames.items()):
        yield LabelledItem(source, size_hw, tuple(objects), frame=frame)


def _object(
    shape: Element,
    name: str,
    size_hw: tuple[int, int],
    ids: Mapping[str, int],
    skipped: Counter[str],
    track: Element | None = None,
) -> LabelledObject | None:
    if shape.tag not in _SHAPES:
        skipped[f"shape of kind {shape.tag}"] += 1
        return None
    if name not in ids:
        skipped["shape with an unknown label"] += 1
        return None
    try:
        mask = _mask(shape, size_hw)
    except (ShapeError, TypeError, ValueError):
        skipped["shape that cannot be drawn"] += 1
        return None
    origin = shape if track is None else track
    return LabelledObject(
        label=ids[name],
        rle=mask,
        track_id=None if track is None else int(track.get("id", 0)),
        source=_SOURCES.get(origin.get("source", "manual"), "human"),
        origin_id=origin.get("id", ""),
    )


def _mask(shape: Element, size_hw: tuple[int, int]) -> bytes:
    def number(name: str) -> float:
        return float(shape.get(name) or "nan")

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
