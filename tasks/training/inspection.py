"""What a label set is like, before anything is trained on it: sizes, classes, and labels that look wrong.

Kinds derive their recipes from it (``Kind.derived``), and ``visionmill inspect`` shows it. Only the labels are looked
at, no image is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.errors import DatasetError
from modelkit import ClassInfo, rle
from modelkit.carriers.landmarks import HIDDEN, VISIBLE, KeypointSet
from tasks.labels.label_sets import LabelSet

_QUANTILES = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "most": 1.0}
_TINY_PX = 4.0  # area; less than two by two pixels teaches no outline
_SAME_IOU = 0.9


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How often a class occurs.

    Args:
        images: that hold it. objects: in all. pixels: share of all pixels, in [0, 1].
    """

    label: int
    name: str
    is_thing: bool
    images: int
    objects: int
    pixels: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """An object whose label looks wrong, and why; ``origin_id`` is its id in the file that it came from."""

    image_id: str
    origin_id: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """A label set in figures; crowds are left out of everything that counts objects.

    Args:
        classes: of the label set.
        sizes_hw: (images, 2) of the source images, pixels.
        boxes_wh: (objects, 2) width and height, source pixels.
        image_of: (objects,) which image each is in.
        areas: (objects,) source pixels.
        is_thing: (objects,) whether it is countable.
        per_image: (images,) objects of each.
        counts: by class, in the order of the classes.
        with_masks: share of the objects that have a mask.
        void: share of the pixels that nobody labelled, of images that say so.
        groups: videos, scenes or clusters that may not be divided.
        suspicions: objects whose labels look wrong.
        points: what the points of its objects are; None where none has any.
        points_given: (objects, K) which of them are given, 0, 1 or 2 as ``v`` is.
        surface_points: (objects,) labelled points of the surface of each.
        surface_parts: the highest number of a part that a point lies on; 0 where there is none.
    """

    classes: tuple[ClassInfo, ...]
    sizes_hw: np.ndarray
    boxes_wh: np.ndarray
    image_of: np.ndarray
    areas: np.ndarray
    is_thing: np.ndarray
    per_image: np.ndarray
    counts: tuple[ClassCount, ...]
    with_masks: float
    void: float
    groups: int
    suspicions: tuple[Suspicion, ...]
    points: KeypointSet | None = None
    points_given: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    surface_points: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    surface_parts: int = 0

    @property
    def with_points(self) -> float:
        """Share of the objects of which a point is given."""
        return float((self.points_given > 0).any(1).mean()) if len(self.points_given) else 0.0

    @property
    def things(self) -> tuple[ClassInfo, ...]:
        """Classes of countable objects that occur."""
        return tuple(
            each for each, count in zip(self.classes, self.counts, strict=True) if each.is_thing and count.objects
        )

    @property
    def stuff(self) -> tuple[ClassInfo, ...]:
        """The other classes that occur."""
        return tuple(
            each for each, count in zip(self.classes, self.counts, strict=True) if not each.is_thing and count.objects
        )

    @property
    def median_hw(self) -> tuple[float, float]:
        """Rows and columns of the usual image."""
        return float(np.median(self.sizes_hw[:, 0])), float(np.median(self.sizes_hw[:, 1]))

    def to_json(self) -> dict[str, Any]:
        """For people and programs; plain JSON."""
        return {
            "images": len(self.sizes_hw),
            "groups": self.groups,
            "image_sides_px": {
                "short": _quantiles(self.sizes_hw.min(1)), "long": _quantiles(self.sizes_hw.max(1))
            },
            "objects": len(self.areas),
            "objects_per_image": _quantiles(self.per_image),
            "images_without_objects": int((self.per_image == 0).sum()),
            "object_sides_px": _quantiles(np.sqrt(self.areas)),
            "height_to_width": _quantiles(self.boxes_wh[:, 1] / np.maximum(self.boxes_wh[:, 0], 1e-9)),
            "objects_with_masks": round(self.with_masks, 4),
            "void_pixels": round(self.void, 4),
            **({} if self.points is None else {"points": self._points_to_json(self.points)}),
            **({"surfaces": self._surfaces_to_json()} if self.surface_parts else {}),
            "classes": [
                {
                    "id": each.label, "name": each.name, "is_thing": each.is_thing, "images": each.images,
                    "objects": each.objects, "pixels": round(each.pixels, 6),
                }
                for each in self.counts
            ],
            "suspicious_labels": [
                {"image": each.image_id, "object": each.origin_id, "class": each.name, "why": each.why}
                for each in self.suspicions
            ],
        }  # fmt: skip

    def _surfaces_to_json(self) -> dict[str, Any]:
        labelled = self.surface_points[self.surface_points > 0]
        return {
            "objects_with_surfaces": round(len(labelled) / max(len(self.surface_points), 1), 4),
            "points_per_object": _quantiles(labelled),
            "parts": self.surface_parts,
        }

    def _points_to_json(self, points: KeypointSet) -> dict[str, Any]:
        mirrored = [[points.names[left], points.names[right]] for left, right in points.flip_pairs]
        return {
            "objects_with_points": round(self.with_points, 4),
            "mirrored": mirrored,
            "lines": len(points.skeleton),
            "given": {
                name: {"seen": int((v == VISIBLE).sum()), "covered": int((v == HIDDEN).sum())}
                for name, v in zip(points.names, self.points_given.T, strict=True)
            },
        }


def inspect_labels(labels: LabelSet) -> Inspection:
    """Look at a label set.

    Raises:
        DatasetError: there is no image in it.
    """
    rows = labels.table.to_pylist()
    if not rows:
        raise DatasetError(
            "there is no labelled image to look at", hint="Were all of them left out? See the counts above."
        )
    objects = [(number, each) for number, row in enumerate(rows) for each in _objects(row)]
    sizes = np.array([(row["height"], row["width"]) for row in rows], np.float64)
    boxes = np.array([each["box"] for _, each in objects], np.float64).reshape(-1, 4)
    image_of = np.array([number for number, _ in objects], np.int64)
    names = {each.id: each.name for each in labels.classes}
    return Inspection(
        classes=labels.classes,
        sizes_hw=sizes,
        boxes_wh=boxes[:, 2:] - boxes[:, :2],
        image_of=image_of,
        areas=np.array([each["area"] for _, each in objects], np.float64),
        is_thing=np.array([each["is_thing"] for _, each in objects], bool),
        per_image=np.bincount(image_of, minlength=len(rows)),
        counts=tuple(_counts(labels.classes, objects, float(sizes.prod(1).sum()))),
        with_masks=float(np.mean([each["rle"] is not None for _, each in objects])) if objects else 0.0,
        void=_void_share(rows),
        groups=len({row["group_id"] for row in rows}),
        suspicions=tuple(one for row in rows for one in _suspicions(row, names)),
        points=labels.points,
        points_given=_points_given(objects, 0 if labels.points is None else len(labels.points)),
        surface_points=np.array([len(each["surface"] or ()) for _, each in objects], np.int64),
        surface_parts=int(max((part for _, each in objects for _, _, part, _, _ in each["surface"] or ()), default=0)),
    )


def _points_given(objects: Sequence[tuple[int, Mapping[str, Any]]], count: int) -> np.ndarray:
    """(objects, count) v of each point."""
    nothing = [(0.0, 0.0, 0.0)] * count
    given = [[v for _, _, v in each["points"] or nothing] for _, each in objects]
    return np.array(given, np.int8).reshape(len(objects), count)


def _objects(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a row that are no crowds."""
    names = ("labels", "boxes_xyxy", "areas", "rles", "is_crowd", "is_thing", "origin_ids")
    optional = (row.get(name) or [None] * len(row["labels"]) for name in ("keypoint_xyv", "surface_points"))
    columns = [*(row[name] for name in names), *optional]
    for label, box, area, mask, crowd, thing, origin, points, surface in zip(*columns, strict=True):
        if not crowd:
            yield {
                "label": label, "box": box, "area": area, "rle": mask, "is_thing": thing, "origin_id": origin,
                "points": points, "surface": surface,
            }  # fmt: skip


def _counts(
    classes: Sequence[ClassInfo], objects: Sequence[tuple[int, Mapping[str, Any]]], pixels: float
) -> Iterator[ClassCount]:
    number, area = Counter(each["label"] for _, each in objects), Counter[int]()
    images: dict[int, set[int]] = {}
    for image, each in objects:
        area[each["label"]] += each["area"]
        images.setdefault(each["label"], set()).add(image)
    for one in classes:
        share = area[one.id] / pixels
        yield ClassCount(one.id, one.name, one.is_thing, len(images.get(one.id, ())), number[one.id], share)


def _void_share(rows: Sequence[Mapping[str, Any]]) -> float:
    shares = [
        float(rle.areas([row["void_rle"]])[0]) / (row["height"] * row["width"])
        for row in rows
        if row["void_rle"] is not None
    ]
    return float(np.mean(shares)) if shares else 0.0


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {name: round(float(np.quantile(values, share)), 2) for name, share in _QUANTILES.items()}


def _suspicions(row: Mapping[str, Any], names: Mapping[int, str]) -> Iterator[Suspicion]:
    """What nobody would draw on purpose; each object is named once, for the first reason."""
    objects = list(_objects(row))
    for place, each in enumerate(objects):
        why = _why_odd(each, row) or _why_twice(place, objects)
        if why:
            yield Suspicion(row["image_id"], each["origin_id"], names.get(each["label"], "?"), why)


def _why_odd(each: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    (x0, y0, x1, y1), (rows, columns) = each["box"], (row["height"], row["width"])
    if x0 < -1 or y0 < -1 or x1 > columns + 1 or y1 > rows + 1:
        return f"its box reaches beyond the image of {columns} x {rows}"
    if each["area"] < _TINY_PX:
        return f"it covers {each['area']:.3g} pixels"
    if each["is_thing"] and each["area"] > 0.95 * rows * columns:
        return "it covers the whole image"
    if any(v and not (-1 <= x <= columns + 1 and -1 <= y <= rows + 1) for x, y, v in each["points"] or ()):
        return f"one of its points lies beyond the image of {columns} x {rows}"
    if each["rle"] is None:
        return ""
    if not rle.areas([each["rle"]])[0]:
        return "its mask is empty"
    return ""


def _why_twice(place: int, objects: Sequence[Mapping[str, Any]]) -> str:
    """Whether an earlier object of the image has about the same box."""
    one = objects[place]
    if not one["is_thing"]:
        return ""
    for other in objects[:place]:
        if other["is_thing"] and _box_iou(one["box"], other["box"]) > _SAME_IOU:
            same = "the same class" if other["label"] == one["label"] else "another class"
            return f"object {other['origin_id']} of {same} has the same box"
    return ""


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
