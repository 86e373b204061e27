"""A label set: human labels of any origin in one table, one row per labelled item, also for items without objects."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.errors import DatasetError, UsageError
from modelkit import rle
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.class_map import FileId
from tasks.labels.losses import Losses
from tasks.labels.points import Point
from tasks.labels.schema import LABELS, LABELS_WITH_POINTS, LABELS_WITH_SURFACES
from tasks.labels.surfaces import SurfacePoint
from tasks.output.layout import canonical_json
from tasks.output.tables import content_digest, table_of

if TYPE_CHECKING:  # its module brings torch
    from modelkit import ClassInfo

SOURCES = ("human", "model", "model_then_human", "human_then_model")
ONLY_A_MODELS = "image that only a model has labelled"
NOBODYS = "image without objects, in a file with labels of a model"


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One object of an item.

    Args:
        label: class id.
        rle: compressed run lengths on the item's canvas; None where only a box is known.
        box_xyxy: source pixels, as its origin states it; None takes the mask's tight box.
        area: in pixels, as its origin states it; None takes the mask's or the box's.
        is_crowd: a region of many objects.
        source: who made it; an edit of a prediction is "model_then_human", never "human".
        keypoint_xyv: x, y (source pixels) and v of each point of the label set; None where none is given.
        surface_points: labelled points of its surface; None where none is given.
    """

    label: int
    rle: bytes | None
    box_xyxy: tuple[float, float, float, float] | None = None
    area: float | None = None
    is_crowd: bool = False
    track_id: int | None = None
    source: str = "human"
    origin_id: str = ""
    keypoint_xyv: tuple[Point, ...] | None = None
    surface_points: tuple[SurfacePoint, ...] | None = None

    def __post_init__(self) -> None:
        if self.rle is None and self.box_xyxy is None:
            raise ValueError("an object needs a mask or a box")
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {self.source!r}")


@dataclass(frozen=True, slots=True)
class LabelledItem:
    """One labelled image or frame; no objects means that somebody looked and found none."""

    uri: str
    size_hw: tuple[int, int]
    objects: tuple[LabelledObject, ...] = ()
    frame: int | None = None  # None for an image
    group_id: str = ""  # empty: to be told by a rule, else the item itself
    void_rle: bytes | None = None

    @property
    def image_id(self) -> str:
        """See :func:`image_id_of`."""
        return image_id_of(self.uri, self.frame)


def image_id_of(uri: str, frame: int | None) -> str:
    """What an item is called: its uri, and for a frame of a video ``#<frame>`` behind it."""
    return uri if frame is None else f"{uri}#{frame}"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Human labels and what their class ids mean.

    Args:
        table: ``labels.v2``, ``labels.v3`` where objects have points, ``labels.v4`` where their surfaces have some;
            sorted by image_id, each item once.
        classes: in the order of their ids.
        losses: what the origin held and is not here.
        file_ids: class id -> what the origin called it, where any differs (see :mod:`tasks.labels.class_map`).
        points: what the points of its objects are; None where none has any.
    """

    table: pa.Table
    classes: tuple[ClassInfo, ...]
    losses: Losses = field(default_factory=Losses)
    file_ids: Mapping[int, FileId] = field(default_factory=dict)
    points: KeypointSet | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def skipped(self) -> dict[str, int]:
        """What the origin held and is not here, by reason."""
        return {**self.losses.left_out, **self.losses.dropped}

    @property
    def label_set_id(self) -> str:
        """SHA-256 of rows and class map, hex."""
        content = f"{class_map_sha256(self.classes)}\n{content_digest(self.table)}"
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What people should know of it before they trust what it teaches or judges; plain JSON."""
        return {
            "label_set_id": self.label_set_id,
            "images": len(self),
            "objects": sum(map(len, self.table["labels"].to_pylist())),
            "sources": dict(sorted(Counter(chain.from_iterable(self.table["sources"].to_pylist())).items())),
            "classes": {str(each.id): each.name for each in self.classes},
            "file_ids": {str(label): file_id for label, file_id in self.file_ids.items()},
            **({} if self.points is None else {"points": self.points.to_json()}),
            "left_out": dict(self.losses.left_out),
            "dropped": dict(self.losses.dropped),
            "first_dropped": dict(self.losses.first),
        }

    def only(self, image_ids: Iterable[str]) -> LabelSet:
        """The rows of some items, in the same order."""
        wanted = pa.array(sorted(set(image_ids)), pa.string())
        return replace(self, table=self.table.filter(pa.compute.is_in(self.table["image_id"], wanted)))

    def truth_per_image(self) -> dict[int, float]:
        """Objects per item by class id, crowds apart; 0 for classes that do not occur."""
        counts = {each.id: 0 for each in self.classes}
        for labels, crowds in zip(self.table["labels"].to_pylist(), self.table["is_crowd"].to_pylist(), strict=True):
            for label, crowd in zip(labels, crowds, strict=True):
                counts[label] += not crowd
        return {label: count / max(len(self), 1) for label, count in counts.items()}


def class_map_sha256(classes: Sequence[ClassInfo]) -> str:
    """Digest of ids, names and order: two class maps that differ in any of them are different."""
    return hashlib.sha256(canonical_json([[each.id, each.name, each.is_thing] for each in classes])).hexdigest()


def make_label_set(
    items: Iterable[LabelledItem],
    classes: Sequence[ClassInfo],
    *,
    origin_format: str,
    losses: Losses | None = None,
    file_ids: Mapping[int, FileId] | None = None,
    points: KeypointSet | None = None,
) -> LabelSet:
    """Items as a label set, sorted and checked.

    Raises:
        DatasetError: no items, an item twice, an unknown class, or a mask that is not of its item's size.
        ValueError: an object with points of another number than ``points`` names.
    """
    ordered = tuple(sorted(classes, key=lambda each: each.id))
    if len({each.id for each in ordered}) < len(ordered) or len({each.name for each in ordered}) < len(ordered):
        raise DatasetError("class ids and names must each be unique", hint="Merge or rename the doubled ones.")
    names = {each.id: each for each in ordered}
    rows: dict[str, dict[str, Any]] = {}
    for item in items:
        if item.image_id in rows:
            raise DatasetError(f"{item.image_id} is labelled twice", hint="Merge its annotations, or leave one out.")
        rows[item.image_id] = _row(item, names, origin_format, 0 if points is None else len(points))
    if not rows:
        reasons = (losses or Losses()).left_out
        left_out = "; ".join(f"{count} x {why}" for why, count in reasons.items())
        pairs = " An image and its mask are paired by name." if any("mask" in why for why in reasons) else ""
        raise DatasetError(
            f"no labelled items{f' (left out: {left_out})' if left_out else ''}",
            hint=f"Items count as labelled only when somebody finished them.{pairs}",
        )
    found = [rows[image_id] for image_id in sorted(rows)]
    if not any(each is not None for row in found for each in row["keypoint_xyv"]):
        points = None
    has_surfaces = any(each is not None for row in found for each in row["surface_points"])
    spec = LABELS_WITH_SURFACES if has_surfaces else LABELS if points is None else LABELS_WITH_POINTS
    table = table_of(spec, [{name: row[name] for name in spec.schema.names} for row in found])
    return LabelSet(table, ordered, losses or Losses(), dict(file_ids or {}), points)


def _row(item: LabelledItem, classes: Mapping[int, ClassInfo], origin_format: str, points: int) -> dict[str, Any]:
    height, width = item.size_hw
    for each in item.objects:
        if each.label not in classes:
            raise DatasetError(f"{item.image_id} holds the class {each.label}, which the class map does not have")
        if points and each.keypoint_xyv is not None and len(each.keypoint_xyv) != points:
            raise ValueError(f"an object of {item.image_id} has {len(each.keypoint_xyv)} points, not {points}")
    masks = [each.rle for each in item.objects if each.rle is not None]
    masks += [item.void_rle] if item.void_rle is not None else []
    for mask in masks:
        if (covered := int(rle.counts_of(mask).sum())) != height * width:
            raise DatasetError(f"{item.image_id} is {height} x {width}, a mask of it covers {covered} pixels")
    boxes = [_box(each, item.size_hw) for each in item.objects]
    return {
        "image_id": item.image_id,
        "uri": item.uri,
        "group_id": item.group_id or (item.uri if item.frame is not None else item.image_id),
        "media": "image" if item.frame is None else "video",
        "frame": item.frame or 0,
        "width": width,
        "height": height,
        "labels": [each.label for each in item.objects],
        "names": [classes[each.label].name for each in item.objects],
        "boxes_xyxy": boxes,
        "areas": [_area(each, box) for each, box in zip(item.objects, boxes, strict=True)],
        "rles": [each.rle for each in item.objects],
        "is_thing": [classes[each.label].is_thing for each in item.objects],
        "is_crowd": [each.is_crowd for each in item.objects],
        "track_ids": [each.track_id for each in item.objects],
        "sources": [each.source for each in item.objects],
        "origin_ids": [each.origin_id for each in item.objects],
        "void_rle": item.void_rle,
        "origin_format": origin_format,
        "keypoint_xyv": [each.keypoint_xyv if points else None for each in item.objects],
        "surface_points": [each.surface_points for each in item.objects],
    }


def _box(each: LabelledObject, size_hw: tuple[int, int]) -> list[float]:
    if each.box_xyxy is not None:
        return [float(value) for value in each.box_xyxy]
    assert each.rle is not None
    return [float(value) for value in rle.bbox(each.rle, size_hw)]


def _area(each: LabelledObject, box: Sequence[float]) -> float:
    if each.area is not None:
        return each.area
    if each.rle is not None:
        return float(rle.area(each.rle))
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def relabelled(
    labels: LabelSet,
    ids: Mapping[int, int | None],
    classes: Sequence[ClassInfo],
    file_ids: Mapping[int, FileId] | None = None,
) -> LabelSet:
    """The same objects under other class ids.

    Args:
        labels: the label set.
        ids: old class id -> new one; None leaves the objects out.
        classes: the new ones, with ids and names.
        file_ids: what the origin calls the new ids.
    """
    table, names = labels.table, {each.id: each.name for each in classes}
    old = table["labels"].to_pylist()
    new = [ids[label] for row in old for label in row]
    kept = pa.array([label is not None for label in new])
    left = [label for label in new if label is not None]
    lengths = [sum(ids[label] is not None for label in row) for row in old]
    offsets = pa.array([0, *accumulate(lengths)], pa.int32())
    changed = {"labels": left, "names": [names[label] for label in left]}
    for each in table.schema:
        if pa.types.is_list(each.type):
            flat = table[each.name].combine_chunks().flatten().filter(kept)
            values = pa.array(changed.get(each.name, flat), each.type.value_type)
            column = pa.ListArray.from_arrays(offsets, values).cast(each.type)
            table = table.set_column(table.schema.get_field_index(each.name), each, column)
    return replace(labels, table=table, classes=tuple(classes), file_ids=dict(file_ids or {}))


def of_people(labels: LabelSet) -> LabelSet:
    """Without the images that only a model has labelled; they are counted among what was left out.

    Where a person made or corrected one label of an image, the others of it were seen, too. A COCO file that holds a
    model's labels may list images in which the model found nothing; nobody can tell who looked at those, so they go.

    Raises:
        UsageError: there are labels, and none of them was made or corrected by a person.
    """
    sources = [set(row) for row in labels.table["sources"].to_pylist()]
    if {"model"} not in sources:
        return labels
    if not set().union(*sources) - {"model"}:
        raise UsageError(
            "no label was made or corrected by a person",
            hint="Predictions that nobody looked at are no labels; put their images among the unlabelled.",
        )
    formats = labels.table["origin_format"].to_pylist()
    nobodys = [not each and origin == "coco" for each, origin in zip(sources, formats, strict=True)]
    kept = [each != {"model"} and not bare for each, bare in zip(sources, nobodys, strict=True)]
    left_out = labels.losses.left_out + Counter({ONLY_A_MODELS: sources.count({"model"}), NOBODYS: sum(nobodys)})
    return replace(labels, table=labels.table.filter(pa.array(kept)), losses=replace(labels.losses, left_out=left_out))


def regroup(labels: LabelSet, groups: Mapping[str, str]) -> LabelSet:
    """The label set with other groups: image_id -> group_id; items that are not named keep theirs."""
    schema = labels.table.schema
    ids = [groups.get(image_id, old) for image_id, old in
           zip(labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist(), strict=True)]  # fmt: skip
    index = schema.get_field_index("group_id")
    return replace(labels, table=labels.table.set_column(index, schema.field("group_id"), pa.array(ids, pa.string())))
