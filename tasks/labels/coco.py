"""Label sets from COCO JSON: objects (polygons, run lengths, boxes, points, points of surfaces); panoptic files have
their own reader.

Files are read array by array, so a file of gigabytes is never held whole. What the file states counts, as it does for
pycocotools: ``bbox`` is the box and ``area`` the area, whatever the mask. Without them the mask tells both. An image
with an integer ``frame`` is that frame, from 0 on, of the video ``file_name``; ``uri``, as our own exports write it,
says where image or video lie, unless an images' root is given.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from infra.errors import DatasetError
from infra.store import Store, open_store, resolve_name, split_uri
from modelkit.carriers.landmarks import KeypointSet
from tasks.ingest.json_stream import JsonBrokenError, iter_array
from tasks.labels.class_map import ClassMap, FileClass, key_of, map_classes
from tasks.labels.coco_panoptic import read_panoptic, track_numbers
from tasks.labels.images import find_images_root
from tasks.labels.label_sets import SOURCES, LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.losses import NO_BOX, Losses
from tasks.labels.points import (
    BROKEN_POINTS,
    OF_ANOTHER_SET,
    Point,
    box_around,
    coco_points,
    set_of_category,
)
from tasks.labels.shapes import BoxError, ShapeError, box_xyxy, coco_segmentation_to_rle
from tasks.labels.surfaces import BROKEN_SURFACE, SURFACE_WITHOUT_MASK, SurfacePoint, coco_surface_points

Json = dict[str, Any]
Box = tuple[float, float, float, float]


def read_coco(
    uri: str,
    *,
    images_root: str | None = None,
    masks_root: str | None = None,
    classes: Sequence[FileClass] | None = None,
) -> LabelSet:
    """The label set of a COCO file.

    Args:
        uri: the JSON file.
        images_root: what ``file_name`` is relative to; found by :func:`tasks.labels.images.find_images_root`.
        masks_root: of a panoptic file, the folder of its PNGs; the JSON's name without ``.json`` unless given.
        classes: use these, by name.

    Raises:
        DatasetError: no COCO file, nothing usable in it, or a class or image id used twice.
    """
    root, key = split_uri(uri)
    file = _File(open_store(root), key)
    known = map_classes(file.classes(), classes)
    images = file.images(images_root)
    losses = Losses()
    by_image: dict[str, list[Json]] = {}
    is_panoptic = False
    for annotation in file.array("annotations"):
        is_panoptic = is_panoptic or "segments_info" in annotation
        if (image_id := key_of(annotation.get("image_id"))) in images:
            by_image.setdefault(image_id, []).append(annotation)
        else:
            losses.leave_out("annotation of an image that is not listed")
    if is_panoptic:
        folder = (masks_root or uri.removesuffix(".json")).rstrip("/")
        return read_panoptic(images, by_image, known, losses, folder)
    tracks = track_numbers(each for annotations in by_image.values() for each in annotations)
    sets = file.point_sets()
    points = _most_frequent(sets, known, by_image)
    reader = _Reader(known, losses, tracks, sets, points)
    items = [
        replace(item, objects=tuple(reader.objects(by_image.get(image_id, []), item)))
        for image_id, item in images.items()
    ]
    return make_label_set(
        items, known.classes, origin_format="coco", losses=losses, file_ids=known.file_ids, points=points
    )


def _most_frequent(
    sets: Mapping[str, KeypointSet], known: ClassMap, by_image: Mapping[str, Sequence[Json]]
) -> KeypointSet | None:
    """The points of most objects of the classes that are asked for; of equals those of the first in the file."""
    keys = (key_of(each["category_id"]) for annotations in by_image.values() for each in annotations
            if each.get("keypoints") and "category_id" in each)  # fmt: skip
    counts = Counter(sets[key].names for key in keys if key in sets and known.ids.get(key) is not None)
    if not counts:
        return None
    return max(sets.values(), key=lambda each: counts[each.names])


@dataclass(frozen=True, slots=True)
class _File:
    store: Store
    key: str

    @property
    def uri(self) -> str:
        return self.store.uri_of(self.key)

    def array(self, name: str) -> Iterator[Json]:
        with self.store.open(self.key) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
            try:
                for element in iter_array(text, name):
                    if not isinstance(element, dict):
                        raise DatasetError(f"{self.uri}: '{name}' must hold objects, found {type(element).__name__}")
                    yield cast(Json, element)
            except (JsonBrokenError, UnicodeDecodeError) as error:
                hint = "Is it a whole COCO annotation file?"
                raise DatasetError(f"{self.uri} cannot be read: {error}", hint=hint) from error

    def classes(self) -> list[FileClass]:
        found = [
            FileClass(str(each["name"]), _file_id(each["id"]), bool(each["isthing"]) if "isthing" in each else None)
            for each in self.array("categories")
            if each.get("id") is not None and "name" in each
        ]
        if not found:
            raise DatasetError(f"{self.uri} names no classes", hint="A COCO file has an array 'categories'.")
        return found

    def point_sets(self) -> dict[str, KeypointSet]:
        """What the points of each class are, by its key."""
        found = {
            key_of(each["id"]): set_of_category(each, each.get("keypoints") or ())
            for each in self.array("categories")
            if "id" in each
        }
        return {key: each for key, each in found.items() if each is not None}

    def images(self, images_root: str | None) -> dict[str, LabelledItem]:
        """By image id, items without objects."""
        listed: dict[str, LabelledItem] = {}
        for each in self.array("images"):
            try:
                image_id, name = key_of(each["id"]), str(each["file_name"])
                size_hw = (int(each["height"]), int(each["width"]))
                frame = int(each["frame"]) if each.get("frame") is not None else None
            except (KeyError, TypeError, ValueError) as error:
                raise DatasetError(f"{self.uri}: an image without id, name or size: {each}") from error
            if image_id in listed:
                raise DatasetError(f"{self.uri}: the image id {image_id} is listed twice")
            if frame is not None or images_root is None:
                name = str(each.get("uri") or name)
            group = "" if each.get("group") is None else str(each["group"])
            listed[image_id] = LabelledItem(name, size_hw, frame=frame, group_id=group)
        root = find_images_root(self.uri, [item.uri for item in listed.values()], images_root)
        return {image_id: self._placed(item, root) for image_id, item in listed.items()}

    def _placed(self, item: LabelledItem, root: str) -> LabelledItem:
        uri = resolve_name(root, item.uri)
        if uri is None:
            raise DatasetError(f"{self.uri}: the image {item.uri} leads out of the bucket")
        return replace(item, uri=uri)


def _file_id(value: Any) -> int | str:
    return int(key_of(value)) if key_of(value).lstrip("-").isdecimal() else str(value)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Annotations -> objects; what cannot be read is counted."""

    known: ClassMap
    losses: Losses
    tracks: Mapping[str, int]
    sets: Mapping[str, KeypointSet]
    points: KeypointSet | None

    def objects(self, annotations: Sequence[Json], item: LabelledItem) -> Iterator[LabelledObject]:
        for each in annotations:
            where = f"annotation {each.get('id', 'without an id')} of {item.image_id}"
            try:
                key = key_of(each["category_id"])
                if key not in self.known.ids:
                    self.losses.drop("annotation of a class that the file does not name", f"class {key}, {where}")
                elif (label := self.known.ids[key]) is None:
                    self.losses.leave_out("annotation of a class that was not asked for")
                else:
                    yield self._object(each, label, item.size_hw, where)
            except BoxError as error:
                self.losses.drop(NO_BOX, f"{where}: {error}")
            except ShapeError as error:
                self.losses.drop("annotation whose shape cannot be drawn", f"{where}: {error}")
            except (KeyError, TypeError, ValueError):
                self.losses.drop("annotation without class or box", where)

    def _object(self, each: Json, label: int, size_hw: tuple[int, int], where: str) -> LabelledObject:
        box = box_xyxy(*each["bbox"]) if each.get("bbox") else None
        mask = None
        try:
            mask = coco_segmentation_to_rle(each["segmentation"], size_hw) if each.get("segmentation") else None
        except ShapeError as error:
            if box is None:
                raise
            self.losses.drop("mask that cannot be drawn (its box is kept)", f"{where}: {error}")
        points = self._points(each, where)
        if mask is None and box is None:
            if points is None:
                raise KeyError("bbox")
            box = box_around(points)
        track = each.get("track_id")
        return LabelledObject(
            label=label,
            rle=mask,
            box_xyxy=box,
            area=_area(each.get("area")),
            is_crowd=bool(int(each.get("iscrowd") or 0)),
            track_id=None if track is None else self.tracks[key_of(track)],
            source=_source(each),
            origin_id=str(each.get("id", "")),
            keypoint_xyv=points,
            surface_points=None if box is None else self._surface(each, box, mask is not None, where),
        )

    def _points(self, each: Json, where: str) -> tuple[Point, ...] | None:
        """Those of the label set's own names; what cannot be read is counted, and costs the points alone."""
        own = self.sets.get(key_of(each["category_id"]))
        if not each.get("keypoints") or own is None or self.points is None:
            return None
        if own.names != self.points.names:
            self.losses.leave_out(OF_ANOTHER_SET)
            return None
        try:
            return coco_points(each["keypoints"], len(own))
        except ShapeError as error:
            self.losses.drop(BROKEN_POINTS, f"{where}: {error}")
            return None

    def _surface(self, each: Json, box: Box, has_mask: bool, where: str) -> tuple[SurfacePoint, ...] | None:
        """What cannot be read or learnt is counted, and costs the points alone."""
        try:
            points = coco_surface_points(each, box)
        except ShapeError as error:
            self.losses.drop(BROKEN_SURFACE, f"{where}: {error}")
            return None
        if points is not None and not has_mask:
            self.losses.drop(SURFACE_WITHOUT_MASK, where)
            return None
        return points


def _source(each: Json) -> str:
    """Our own word for it; other tools' ``source`` means something else. People state no confidence."""
    if each.get("source") in SOURCES:
        return str(each["source"])
    return "model" if "score" in each else "human"


def _area(value: Any) -> float | None:
    """A stated area; None for what is no number, as absent."""
    try:
        area = float(value)
    except (TypeError, ValueError):
        return None
    return area if math.isfinite(area) and area >= 0 else None
