"""Label sets from Label Studio's JSON export, and who really made each label.

An annotation is a person's work, but its regions need not be: ``origin`` says "prediction" for a region that was taken
over as the model made it, and "prediction-changed" for an edited one. Exports keep "prediction" even after some edits,
so a region whose shape differs from the prediction it names is an edit, too. Neither ever counts as "human".
"""

from __future__ import annotations

import io
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import DatasetError
from infra.store import is_local, open_store, resolve_name, split_uri
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.class_map import ClassMap, FileClass, map_classes
from tasks.labels.images import find_images_root
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.label_studio_points import (
    BROKEN_POINT,
    ONLY_CLASS,
    NamedPoint,
    named_point,
    set_of_regions,
    with_points,
)
from tasks.labels.label_studio_points import KIND as POINT
from tasks.labels.losses import NO_BOX, Losses
from tasks.labels.shapes import (
    BoxError,
    ShapeError,
    box_xyxy,
    brush_to_rle,
    ellipse_to_rle,
    polygons_to_rle,
    rectangle_to_rle,
)
from tasks.media.images import decode_image

Json = dict[str, Any]
_SHAPES = ("rectangle", "polygon", "brush", "ellipse")
# What hangs on a region or on the whole task, and points without a name: nothing of these is an object.
_NO_AREA = ("labels", "choices", "textarea", "rating", "number", "datetime", "taxonomy", "ranker", "relation",
            "pairwise", "keypoint")  # fmt: skip
_UPLOADS = "data/upload/"
_LOCAL_FILES = "/data/local-files/"


def read_label_studio(
    uri: str, *, images_root: str | None = None, classes: Sequence[FileClass] | None = None
) -> LabelSet:
    """The label set of an export (``JSON``, not ``JSON-MIN``).

    Args:
        uri: the export: an array of tasks.
        images_root: where images lie whose task names them by a path; found by
            :func:`tasks.labels.images.find_images_root`.
        classes: use these, by name; without, names get the ids 1, 2, ... in alphabetical order of those that occur
            anywhere in the file, for an export does not hold the list of labels.

    Returns:
        Of a task with several finished annotations the newest counts. Tasks without one are not labelled.

    Raises:
        DatasetError: no export, or nothing usable in it.
    """
    tasks = _tasks(uri)
    losses = Losses()
    points, names_of_shapes = set_of_regions(_regions(tasks)), sorted(_names(tasks))
    is_bare = points is not None and not names_of_shapes
    known = map_classes([FileClass(name) for name in ([ONLY_CLASS] if is_bare else names_of_shapes)], classes)
    finished = [(task, found) for task in tasks if (found := _newest(task, losses)) is not None]
    names = [_name(task) for task, _ in finished]
    root = find_images_root(uri, [_path(name) for name in names if is_local(name)], images_root)
    reader = _Reader(known, losses, points, known.ids.get(ONLY_CLASS) if is_bare else None)
    items = [reader.item(task, found, _uri(name, root)) for (task, found), name in zip(finished, names, strict=True)]
    return make_label_set(items, known.classes, origin_format="label_studio", losses=losses, points=points)


def _tasks(uri: str) -> list[Json]:
    root, key = split_uri(uri)
    try:
        content = json.load(io.BytesIO(open_store(root).get(key)))
    except ValueError as error:
        raise DatasetError(f"{uri} is no JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(each, dict) and "data" in each for each in content):
        raise DatasetError(f"{uri} is no Label Studio export", hint="Export as JSON: an array of tasks with 'data'.")
    return content


def _newest(task: Json, losses: Losses) -> Json | None:
    annotations = [each for each in task.get("annotations") or () if isinstance(each, dict)]
    kept = [each for each in annotations if not each.get("was_cancelled")]
    losses.leave_out("cancelled annotation", len(annotations) - len(kept))
    if not kept:
        losses.leave_out("task without a finished annotation")
        return None
    return max(kept, key=lambda each: (str(each.get("updated_at", "")), str(each.get("id", ""))))


def _names(tasks: Sequence[Json]) -> set[str]:
    """Labels of regions of all annotations and predictions, also those that do not count."""
    kinds = [*(f"{shape}labels" for shape in _SHAPES), "labels"]
    return {str(name) for region in _regions(tasks) for kind in kinds
            for name in (region.get("value") or {}).get(kind) or ()}  # fmt: skip


def _regions(tasks: Sequence[Json]) -> list[Json]:
    """Of all annotations and predictions."""
    results = [part for task in tasks for name in ("annotations", "predictions") for part in task.get(name) or ()]
    return [region for part in results if isinstance(part, dict) for region in part.get("result") or ()]


def _name(task: Json) -> str:
    """What the task calls its image."""
    data = task["data"]
    name = next((str(value) for key, value in data.items() if key in ("image", "img", "url")), None)
    name = name or next((str(value) for value in data.values() if isinstance(value, str)), None)
    if name is None:
        raise DatasetError(f"task {task.get('id')} names no image", hint="Its 'data' needs a key 'image'.")
    return name


def _path(name: str) -> str:
    """Below the images' root; names are URLs of Label Studio, so they are decoded, once."""
    if name.startswith(_LOCAL_FILES):
        return urllib.parse.parse_qs(urllib.parse.urlsplit(name).query).get("d", [""])[0].lstrip("/")
    return urllib.parse.unquote(name).lstrip("/").removeprefix(_UPLOADS)


def _uri(name: str, root: str) -> str:
    """The image's URI: s3:// stays; uploads and local files are paths below the root."""
    if not is_local(name):
        return name
    path = _path(name)
    resolved = resolve_name(root, path)
    if "://" in name or resolved is None or not path:
        raise DatasetError(f"the image {name!r} cannot be found", hint="Use s3:// or paths below the images' root.")
    return resolved


def _measured(uri: str) -> tuple[int, int]:
    root, key = split_uri(uri)
    decoded = decode_image(open_store(root).get(key), name=uri)
    if decoded.failure is not None or decoded.size_hw is None:
        raise DatasetError(f"{uri} cannot be decoded: {decoded.failure and decoded.failure.error}")
    return decoded.size_hw


@dataclass(frozen=True, slots=True)
class _Reader:
    """Regions -> objects; what cannot be read is counted."""

    known: ClassMap
    losses: Losses
    points: KeypointSet | None = None
    only_class: int | None = None

    def item(self, task: Json, annotation: Json, uri: str) -> LabelledItem:
        """One labelled image. Raises DatasetError when its regions are on images of different sizes."""
        regions = [region for region in annotation.get("result") or () if isinstance(region, dict)]
        size_hw = _size(task, regions, uri)
        results = [part for part in task.get("predictions") or () if isinstance(part, dict)]
        predicted = {each.get("id"): each for part in results for each in part.get("result") or ()}
        labels = {each.get("id"): each["value"]["labels"] for each in regions if _value(each).get("labels")}
        where = f"task {task.get('id')}"
        shapes = [each for each in regions if each.get("type") != POINT]
        found = [self.object(each, size_hw, labels, predicted, where) for each in shapes]
        objects = [each for each in found if each is not None]
        if self.points is not None:
            points = [point for each in regions if each.get("type") == POINT
                      for point in self._point(each, size_hw, _source(each, predicted), where)]  # fmt: skip
            objects = with_points(objects, points, self.points, size_hw, self.losses, self.only_class)
        return LabelledItem(uri, size_hw, tuple(objects))

    def _point(self, region: Json, size_hw: tuple[int, int], source: str, task: str) -> Iterator[NamedPoint]:
        where = f"region {region.get('id')} of {task}"
        try:
            yield named_point(region, size_hw, source, where)
        except ShapeError as error:
            self.losses.drop(BROKEN_POINT, f"{where}: {error}")

    def object(
        self,
        region: Json,
        size_hw: tuple[int, int],
        labels: Mapping[Any, Sequence[str]],
        predicted: Mapping[Any, Json],
        task: str,
    ) -> LabelledObject | None:
        """The object of a region.

        Args:
            region: with its own labels (``RectangleLabels``), or a shape whose labels stand in a region of the same id
                (``Labels`` beside ``Rectangle``).
            size_hw: of the image.
            labels: by id of the region. predicted: regions of predictions by id.
            task: for counts.
        """
        kind = str(region.get("type"))
        shape, where = kind.removesuffix("labels"), f"region {region.get('id')} of {task}"
        names = _value(region).get(kind if kind != shape else "labels") or labels.get(region.get("id")) or ()
        if kind in _NO_AREA:
            if kind != "labels":
                self.losses.leave_out(f"region of type {kind}")
        elif shape not in _SHAPES:
            self.losses.drop(f"region of type {kind}", where)
        elif not names or names[0] not in self.known.ids:
            self.losses.drop("region without a label", where)
        elif (label := self.known.ids[names[0]]) is None:
            self.losses.leave_out("region of a class that was not asked for")
        else:
            return self._object(region, shape, label, size_hw, _source(region, predicted), where)
        return None

    def _object(
        self, region: Json, shape: str, label: int, size_hw: tuple[int, int], source: str, where: str
    ) -> LabelledObject | None:
        try:
            box, mask = _drawn(shape, _value(region), size_hw)
        except BoxError as error:
            self.losses.drop(NO_BOX, f"{where}: {error}")
            return None
        except (ShapeError, KeyError, TypeError, ValueError) as error:
            self.losses.drop("region whose shape cannot be drawn", f"{where}: {error}")
            return None
        return LabelledObject(label, mask, box, source=source, origin_id=str(region.get("id", "")))


def _value(region: Json) -> Json:
    value = region.get("value")
    return value if isinstance(value, dict) else {}


def _size(task: Json, regions: Sequence[Json], uri: str) -> tuple[int, int]:
    """As the regions state it, else the task; else the image is opened. What does not state one says null."""
    sizes = {
        (int(each["original_height"]), int(each["original_width"]))
        for each in regions
        if each.get("original_width") and each.get("original_height")
    }
    meta = task.get("meta") or {}
    if not sizes and meta.get("height") and meta.get("width"):
        sizes = {(int(meta["height"]), int(meta["width"]))}
    if len(sizes) > 1:
        raise DatasetError(f"the regions of task {task.get('id')} are on images of different sizes: {sorted(sizes)}")
    return sizes.pop() if sizes else _measured(uri)


def _drawn(shape: str, value: Json, size_hw: tuple[int, int]) -> tuple[tuple[float, float, float, float] | None, bytes]:
    """The box as it was drawn (of rectangles that are not turned) and the mask. Positions are per cent of the sides."""
    per_x, per_y = size_hw[1] / 100.0, size_hw[0] / 100.0
    if shape == "brush":
        return None, brush_to_rle(value["rle"], size_hw)
    if shape == "polygon":
        return None, polygons_to_rle([[part for x, y in value["points"] for part in (x * per_x, y * per_y)]], size_hw)
    (x, y), turn = (value["x"] * per_x, value["y"] * per_y), float(value.get("rotation") or 0.0)
    if shape == "ellipse":
        return None, ellipse_to_rle((x, y), (value["radiusX"] * per_x, value["radiusY"] * per_y), turn, size_hw)
    width, height = value["width"] * per_x, value["height"] * per_y
    box = box_xyxy(x, y, width, height)
    return None if turn else box, rectangle_to_rle((x, y), (width, height), turn, size_hw)


def _source(region: Json, predicted: Mapping[Any, Json]) -> str:
    origin = region.get("origin", "manual")
    if origin == "prediction-changed":
        return "model_then_human"
    if origin != "prediction":
        return "human"
    before = predicted.get(region.get("id"))
    if before is None:  # of a point, the parent is the object that it lies on: no other form of the same
        parent = predicted.get(region.get("parentID"))
        before = parent if parent is not None and parent.get("type") == region.get("type") else None
    if before is not None and before.get("value") != region.get("value"):
        return "model_then_human"
    return "model"
