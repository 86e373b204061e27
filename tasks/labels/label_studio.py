"""Label sets from Label Studio's JSON export, and who really made each label.

An annotation is a person's work, but its regions need not be: ``origin`` says "prediction" for a region that was taken
over as the model made it, and "prediction-changed" for an edited one. Exports keep "prediction" even after some edits,
so a region whose shape differs from the prediction it names is an edit, too. Neither ever counts as "human".
"""

from __future__ import annotations

import io
import json
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.errors import DatasetError
from infra.store import absolute_uri, folder_of, is_local, open_store, resolve_name, split_uri
from modelkit import ClassInfo
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.shapes import (
    ShapeError,
    brush_to_rle,
    ellipse_to_rle,
    polygons_to_rle,
    rectangle_to_rle,
)
from tasks.media.images import decode_image
from tasks.records import ItemFailure

Json = dict[str, Any]
_KINDS = {
    "rectanglelabels": "rectangle",
    "polygonlabels": "polygon",
    "brushlabels": "brush",
    "ellipselabels": "ellipse",
}
_UPLOADS = "data/upload/"
_LOCAL_FILES = "/data/local-files/"


def read_label_studio(
    uri: str, *, images_root: str | None = None, classes: Sequence[ClassInfo] | None = None
) -> LabelSet:
    """The label set of an export (``JSON``, not ``JSON-MIN``).

    Args:
        uri: the export: an array of tasks.
        images_root: where images lie whose task names them by a path; the export's own folder unless given.
        classes: what the labels' names mean; without, names get the ids 1, 2, ... in alphabetical order.

    Returns:
        Of a task with several finished annotations the newest counts. Tasks without one are not labelled. What is left
        out is counted in ``skipped``: unfinished tasks, cancelled annotations, regions of other kinds or unknown names.

    Raises:
        DatasetError: no export, or nothing usable in it.
    """
    tasks = _tasks(uri)
    skipped: Counter[str] = Counter()
    finished = [(task, found) for task in tasks if (found := _newest(task, skipped)) is not None]
    if classes is None:
        names = sorted({name for _, annotation in finished for name in _names(annotation)})
        classes = [ClassInfo(k + 1, name) for k, name in enumerate(names)]
    ids = {each.name: each.id for each in classes}
    root = absolute_uri(images_root) if images_root else folder_of(uri)
    items = [_item(task, annotation, root, ids, skipped) for task, annotation in finished]
    return make_label_set(items, classes, origin_format="label_studio", skipped=skipped)


def _tasks(uri: str) -> list[Json]:
    root, key = split_uri(uri)
    try:
        content = json.load(io.BytesIO(open_store(root).get(key)))
    except ValueError as error:
        raise DatasetError(f"{uri} is no JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(each, dict) and "data" in each for each in content):
        raise DatasetError(f"{uri} is no Label Studio export", hint="Export as JSON: an array of tasks with 'data'.")
    return content


def _newest(task: Json, skipped: Counter[str]) -> Json | None:
    annotations = [each for each in task.get("annotations", []) if isinstance(each, dict)]
    kept = [each for each in annotations if not each.get("was_cancelled")]
    skipped["cancelled annotation"] += len(annotations) - len(kept)
    if not kept:
        skipped["task without a finished annotation"] += 1
        return None
    return max(kept, key=lambda each: (str(each.get("updated_at", "")), str(each.get("id", ""))))


def _names(annotation: Json) -> Iterator[str]:
    for region in annotation.get("result", []):
        if region.get("type") in _KINDS:
            yield from region.get("value", {}).get(region["type"], [])[:1]


def _item(task: Json, annotation: Json, root: str, ids: Mapping[str, int], skipped: Counter[str]) -> LabelledItem:
    regions = annotation.get("result", [])
    name = next((str(value) for key, value in task["data"].items() if key in ("image", "img", "url")), None)
    name = name or next((str(value) for value in task["data"].values() if isinstance(value, str)), None)
    if name is None:
        raise DatasetError(f"task {task.get('id')} names no image", hint="Its 'data' needs a key 'image'.")
    uri = _uri(name, root)
    sizes = {
        (int(each["original_height"]), int(each["original_width"])) for each in regions if "original_width" in each
    }
    meta = task.get("meta") or {}
    if not sizes and "height" in meta and "width" in meta:
        sizes = {(int(meta["height"]), int(meta["width"]))}
    if not sizes:
        sizes = {_measured(uri)}  # nothing was found on it, so that no region states the size
    if len(sizes) != 1:
        raise DatasetError(f"the regions of task {task.get('id')} are on images of different sizes: {sorted(sizes)}")
    (size_hw,) = sizes
    predicted = {each.get("id"): each for one in task.get("predictions", []) for each in one.get("result", [])}
    objects = [_object(region, size_hw, ids, predicted, skipped) for region in regions]
    return LabelledItem(uri, size_hw, tuple(each for each in objects if each is not None))


def _uri(name: str, root: str) -> str:
    """The image's URI: s3:// stays; uploads and local files are paths below the root."""
    if not is_local(name):
        return name
    if name.startswith(_LOCAL_FILES):
        name = urllib.parse.parse_qs(urllib.parse.urlsplit(name).query).get("d", [""])[0]
    path = urllib.parse.unquote(name).lstrip("/").removeprefix(_UPLOADS)
    resolved = resolve_name(root, path)
    if "://" in name or resolved is None or not path:
        raise DatasetError(f"the image {name!r} cannot be found", hint="Use s3:// or paths below the images' root.")
    return resolved


def _measured(uri: str) -> tuple[int, int]:
    root, key = split_uri(uri)
    decoded = decode_image(open_store(root).get(key), name=uri)
    if isinstance(decoded, ItemFailure):
        raise DatasetError(f"{uri} cannot be decoded: {decoded.error}")
    return decoded.size_hw


def _object(
    region: Json, size_hw: tuple[int, int], ids: Mapping[str, int], predicted: Mapping[Any, Json], skipped: Counter[str]
) -> LabelledObject | None:
    kind = region.get("type")
    if kind not in _KINDS:
        skipped[f"region of type {kind}"] += 1
        return None
    value = region.get("value", {})
    names = value.get(kind, [])
    if not names or names[0] not in ids:
        skipped["region with an unknown label"] += 1
        return None
    try:
        mask = _mask(_KINDS[kind], value, size_hw)
    except (ShapeError, KeyError, TypeError, ValueError):
        skipped["region whose shape cannot be drawn"] += 1
        return None
    return LabelledObject(ids[names[0]], mask, source=_source(region, predicted), origin_id=str(region.get("id", "")))


def _mask(kind: str, value: Json, size_hw: tuple[int, int]) -> bytes:
    """Positions are per cent of the image's sides."""
    per_x, per_y = size_hw[1] / 100.0, size_hw[0] / 100.0
    if kind == "brush":
        return brush_to_rle(value["rle"], size_hw)
    if kind == "polygon":
        return polygons_to_rle([[part for x, y in value["points"] for part in (x * per_x, y * per_y)]], size_hw)
    corner, turn = (value["x"] * per_x, value["y"] * per_y), float(value.get("rotation", 0.0))
    if kind == "ellipse":
        return ellipse_to_rle(corner, (value["radiusX"] * per_x, value["radiusY"] * per_y), turn, size_hw)
    return rectangle_to_rle(corner, (value["width"] * per_x, value["height"] * per_y), turn, size_hw)


def _source(region: Json, predicted: Mapping[Any, Json]) -> str:
    origin = region.get("origin", "manual")
    if origin == "prediction-changed":
        return "model_then_human"
    if origin != "prediction":
        return "human"
    before = predicted.get(region.get("parentID") or region.get("id"))
    if before is not None and before.get("value") != region.get("value"):
        return "model_then_human"
    return "model"
