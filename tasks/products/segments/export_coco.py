"""COCO's instance JSON: opens in pycocotools; images and annotations in the order of (uri, frame, instance).

Ids are positions in that order, so the same results give the same file. Two passes over one sorted stream would
read the masks twice; instead annotations are spooled beside the file while the images are written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from infra.store import Store
from tasks.output.naming import common_root, relative_name
from tasks.output.views import Views
from tasks.products.segments.classes import classes_of, file_ids_of, model_of
from tasks.products.segments.export_files import stream

_BATCH_ROWS = 2_000
FileIds = Mapping[int, int | str]

_ITEMS = """
SELECT uri, etag, media, frame, pts_s, width, height, labels, scores, boxes_xyxy, areas, rles, is_thing, track_ids
FROM items WHERE status = 'ok' ORDER BY uri, frame
"""


def write_coco(views: Views, store: Store, key: str) -> int:
    """Write one JSON file and return the number of annotations.

    ``images`` hold id, file_name (relative to what all uris share), width, height, and as extras uri, etag and for
    frames of videos frame and pts_s. ``annotations`` hold segmentation (compressed run lengths as text), bbox (xywh),
    area, score, iscrowd 0, and as extras source ("model", so that nobody takes them for labels), track_id and is_thing.
    ``categories`` are the model's classes, with the ids of the file of labels that it learnt from.
    """
    file_ids = file_ids_of(views)
    with tempfile.TemporaryDirectory(prefix="visionmill-coco-") as folder:
        path, spool = Path(folder) / "instances.json", Path(folder) / "annotations"
        with path.open("w", encoding="ascii") as out, spool.open("w+", encoding="ascii") as annotations:
            _write_head(out, views, file_ids)
            num_annotations = _write_items(views, out, annotations, file_ids)
            out.write('],\n"annotations": [')
            annotations.seek(0)
            shutil.copyfileobj(annotations, out, 1 << 20)
            out.write("]}\n")
        store.put_file_if_absent(key, path)
    return num_annotations


def _write_head(out: TextIO, views: Views, file_ids: FileIds) -> None:
    newest = views.listing.newest
    info = {
        "description": f"predictions in {views.listing.store.uri}",
        "version": newest and newest.fingerprint,
        "source": "model",
        "model": model_of(views),
    }
    categories = [
        {"id": file_ids.get(label, label), "name": name, "supercategory": ""}
        for label, name in classes_of(views).items()
    ]
    out.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)},\n"images": [')


def _write_items(views: Views, images: TextIO, annotations: TextIO, file_ids: FileIds) -> int:
    root = common_root(views)
    num_images = num_annotations = 0
    for batch in stream(views, _ITEMS, _BATCH_ROWS):
        for row in batch.to_pylist():
            num_images += 1
            images.write("\n" if num_images == 1 else ",\n")
            images.write(json.dumps(_image(row, num_images, root)))
            for annotation in _annotations(row, num_images, num_annotations + 1, file_ids):
                num_annotations += 1
                annotations.write("\n" if num_annotations == 1 else ",\n")
                annotations.write(json.dumps(annotation))
    return num_annotations


def _image(row: dict[str, Any], image_id: int, root: str) -> dict[str, Any]:
    image = {
        "id": image_id,
        "file_name": relative_name(row["uri"], root, row["media"], row["frame"]),
        "width": row["width"],
        "height": row["height"],
        "uri": row["uri"],
        "etag": row["etag"],
    }
    return image if row["media"] == "image" else image | {"frame": row["frame"], "pts_s": row["pts_s"]}


def _annotations(row: dict[str, Any], image_id: int, first_id: int, file_ids: FileIds) -> Iterator[dict[str, Any]]:
    size = [row["height"], row["width"]]
    for index, label in enumerate(row["labels"] or ()):
        x0, y0, x1, y1 = row["boxes_xyxy"][index]
        annotation: dict[str, Any] = {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": file_ids.get(label, label),
            "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
            "area": row["areas"][index],
            "score": round(row["scores"][index], 6),
            "source": "model",
            "iscrowd": 0,
            "is_thing": row["is_thing"][index],
            "segmentation": [],  # models without masks
        }
        if row["rles"] is not None and row["rles"][index] is not None:
            annotation["segmentation"] = {"size": size, "counts": row["rles"][index].decode("ascii")}
        if row["track_ids"] is not None and row["track_ids"][index] is not None:
            annotation["track_id"] = row["track_ids"][index]
        yield annotation
