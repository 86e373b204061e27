"""Label sets from COCO JSON: instances (polygons, run lengths, boxes) and panoptic (a PNG of segment ids per image).

Files are read array by array, so a file of gigabytes is never held whole. An image with an integer ``frame`` is that
frame, from 0 on, of the video ``file_name`` (of the video ``uri`` where there is one, as in our own exports). Pixels of
a panoptic PNG that no segment names are void: COCO has it so, and nobody said that they are background.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
from PIL import Image

from infra.errors import DatasetError, StoreError
from infra.store import Store, absolute_uri, folder_of, open_store, resolve_name, split_uri
from modelkit import ClassInfo, rle
from tasks.ingest.json_stream import JsonBrokenError, iter_array
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.shapes import ShapeError, coco_segmentation_to_rle

Json = dict[str, Any]


def read_coco(uri: str, *, images_root: str | None = None, masks_root: str | None = None) -> LabelSet:
    """The label set of a COCO file.

    Args:
        uri: the JSON file.
        images_root: what ``file_name`` is relative to; the JSON's own folder unless given.
        masks_root: of a panoptic file, the folder of its PNGs; the JSON's name without ``.json`` unless given.

    Returns:
        Annotations that cannot be drawn or whose image is not listed are left out and counted in ``skipped``.

    Raises:
        DatasetError: no COCO file, nothing usable in it, or a class or image id used twice.
    """
    root, key = split_uri(uri)
    store = open_store(root)
    classes = _classes(store, key)
    images = _images(store, key, absolute_uri(images_root) if images_root else folder_of(uri))
    skipped: Counter[str] = Counter()
    by_image: dict[int, list[Json]] = {}
    is_panoptic = False
    for annotation in _array(store, key, "annotations"):
        is_panoptic = is_panoptic or "segments_info" in annotation
        if annotation.get("image_id") in images:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        else:
            skipped["annotation of an image that is not listed"] += 1
    if is_panoptic:
        folder = (masks_root or uri.removesuffix(".json")).rstrip("/")
        return _panoptic(images, by_image, classes, skipped, folder)
    items = [
        replace(item, objects=tuple(_objects(by_image.get(image_id, []), item.size_hw, skipped)))
        for image_id, item in images.items()
    ]
    return make_label_set(items, classes, origin_format="coco", skipped=skipped)


def _array(store: Store, key: str, name: str) -> Iterator[Json]:
    uri = store.uri_of(key)
    with store.open(key) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
        try:
            for element in iter_array(text, name):
                if not isinstance(element, dict):
                    raise DatasetError(f"{uri}: '{name}' must hold objects, found {type(element).__name__}")
                yield cast(Json, element)
        except (JsonBrokenError, UnicodeDecodeError) as error:
            raise DatasetError(f"{uri} cannot be read: {error}", hint="Is it a whole COCO annotation file?") from error


def _classes(store: Store, key: str) -> list[ClassInfo]:
    found = [
        ClassInfo(int(each["id"]), str(each["name"]), bool(each.get("isthing", 1)))
        for each in _array(store, key, "categories")
        if "id" in each and "name" in each
    ]
    if not found:
        raise DatasetError(f"{store.uri_of(key)} names no classes", hint="A COCO file has an array 'categories'.")
    return found


def _images(store: Store, key: str, root: str) -> dict[int, LabelledItem]:
    """By image id, items without objects."""
    images: dict[int, LabelledItem] = {}
    for each in _array(store, key, "images"):
        try:
            image_id, size_hw = each["id"], (int(each["height"]), int(each["width"]))
            frame = int(each["frame"]) if "frame" in each else None
            video = each.get("uri") if frame is not None else None
            name = resolve_name(root, video or each["file_name"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{store.uri_of(key)}: an image without id, name or size: {each}") from error
        if image_id in images or name is None:
            raise DatasetError(f"{store.uri_of(key)}: image {image_id} is listed twice, or leads out of the bucket")
        images[image_id] = LabelledItem(name, size_hw, frame=frame)
    return images


def _objects(annotations: list[Json], size_hw: tuple[int, int], skipped: Counter[str]) -> Iterator[LabelledObject]:
    for each in annotations:
        try:
            yield _object(each, size_hw)
        except ShapeError:
            skipped["annotation whose shape cannot be drawn"] += 1
        except (KeyError, TypeError, ValueError):
            skipped["annotation without class or box"] += 1


def _object(each: Json, size_hw: tuple[int, int]) -> LabelledObject:
    segmentation = each.get("segmentation")
    mask = coco_segmentation_to_rle(segmentation, size_hw) if segmentation else None
    box = None
    if mask is None:
        x, y, width, height = (float(value) for value in each["bbox"])
        box = (x, y, x + width, y + height)
    return LabelledObject(
        label=int(each["category_id"]),
        rle=mask,
        box_xyxy=box,
        area=round(float(each["area"])) if "area" in each else None,
        is_crowd=bool(each.get("iscrowd", 0)),
        track_id=each.get("track_id"),
        source=str(each.get("source", "model" if "score" in each else "human")),  # people state no confidence
        origin_id=str(each.get("id", "")),
    )


def _panoptic(
    images: dict[int, LabelledItem],
    by_image: dict[int, list[Json]],
    classes: list[ClassInfo],
    skipped: Counter[str],
    masks_root: str,
) -> LabelSet:
    """Images without an annotation of theirs are not labelled: panoptic files have one for every image."""
    read = _png_reader(masks_root)
    items = []
    for image_id, item in images.items():
        if image_id not in by_image:
            skipped["panoptic image without an annotation"] += 1
            continue
        (annotation, *more) = by_image[image_id]
        skipped["second panoptic annotation of an image"] += len(more)
        ids = segment_ids(read(str(annotation["file_name"])))
        if ids.shape != item.size_hw:
            raise DatasetError(
                f"{annotation['file_name']} is {ids.shape}, its image {item.image_id} {item.size_hw} (rows, columns)"
            )
        masks = rle.encode_label_map(ids)
        objects = []
        for segment in annotation["segments_info"]:
            mask = masks.pop(int(segment["id"]), None)
            if mask is None:
                skipped["panoptic segment without pixels"] += 1
                continue
            objects.append(
                LabelledObject(
                    label=int(segment["category_id"]),
                    rle=mask,
                    is_crowd=bool(segment.get("iscrowd", 0)),
                    track_id=segment.get("track_id"),
                    origin_id=str(segment["id"]),
                )
            )
        void = np.isin(ids, list(masks)) if masks else None  # what no segment claimed
        void_rle = rle.encode(void) if void is not None else None
        items.append(replace(item, objects=tuple(objects), void_rle=void_rle))
    return make_label_set(items, classes, origin_format="coco_panoptic", skipped=+skipped)


def segment_ids(rgb_hwc: np.ndarray) -> np.ndarray:
    """(H, W) int64 segment ids of a COCO panoptic picture: R + 256 G + 65536 B."""
    red, green, blue = (rgb_hwc[:, :, channel].astype(np.int64) for channel in range(3))
    return red + 256 * green + 65536 * blue


def _png_reader(folder: str) -> Callable[[str], np.ndarray]:
    def read(name: str) -> np.ndarray:
        store, key = open_store(folder), name
        try:
            with Image.open(io.BytesIO(store.get(key)), formats=("PNG",)) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, StoreError) as error:
            raise DatasetError(f"{folder}/{name} is no readable panoptic picture: {error}") from error

    return read
