"""COCO's JSON of what a product found: images and annotations in the order of (uri, frame, thing).

Ids are positions in that order, so the same results give the same file. Two passes over one sorted stream would
read the results twice; instead annotations are spooled beside the file while the images are written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from infra.store import Store
from tasks.output.naming import common_root, relative_name
from tasks.output.views import Views
from tasks.report.classes import classes_of, file_ids_of, model_of
from tasks.report.export_files import stream

_BATCH_ROWS = 2_000
FileIds = Mapping[int, int | str]
Json = dict[str, Any]
Annotations = Callable[[Json], Iterator[tuple[int, Json]]]
"""Row of ``items`` -> class id of each thing, and what its annotation holds beside ids."""


def write_coco_file(
    views: Views,
    store: Store,
    key: str,
    *,
    columns: str,
    annotations_of: Annotations,
    category: Json | None = None,
) -> int:
    """Write one JSON file and return the number of annotations.

    ``images`` hold id, file_name (relative to what all uris share), width, height, and as extras uri, etag and for
    frames of videos frame and pts_s. ``categories`` are the model's classes, with the ids of the file of labels that it
    learnt from.

    Args:
        columns: of ``items`` that annotations are made of.
        annotations_of: makes them, see ``Annotations``.
        category: what every category holds beside id, name and supercategory.
    """
    file_ids = file_ids_of(views)
    sql = (
        f"SELECT uri, etag, media, frame, pts_s, width, height, {columns} FROM items WHERE status = 'ok'"
        " ORDER BY uri, frame"
    )
    with tempfile.TemporaryDirectory(prefix="visionmill-coco-") as folder:
        path, spool = Path(folder) / "coco.json", Path(folder) / "annotations"
        with path.open("w", encoding="ascii") as out, spool.open("w+", encoding="ascii") as annotations:
            _write_head(out, views, file_ids, category or {})
            num_annotations = _write_items(views, sql, out, annotations, file_ids, annotations_of)
            out.write('],\n"annotations": [')
            annotations.seek(0)
            shutil.copyfileobj(annotations, out, 1 << 20)
            out.write("]}\n")
        store.put_file_if_absent(key, path)
    return num_annotations


def _write_head(out: TextIO, views: Views, file_ids: FileIds, category: Json) -> None:
    newest = views.listing.newest
    info = {
        "description": f"predictions in {views.listing.store.uri}",
        "version": newest and newest.fingerprint,
        "source": "model",
        "model": model_of(views),
    }
    categories = [
        {"id": file_ids.get(label, label), "name": name, "supercategory": "", **category}
        for label, name in classes_of(views).items()
    ]
    out.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)},\n"images": [')


def _write_items(
    views: Views, sql: str, images: TextIO, annotations: TextIO, file_ids: FileIds, annotations_of: Annotations
) -> int:
    root = common_root(views)
    num_images = num_annotations = 0
    for batch in stream(views, sql, _BATCH_ROWS):
        for row in batch.to_pylist():
            num_images += 1
            images.write("\n" if num_images == 1 else ",\n")
            images.write(json.dumps(_image(row, num_images, root)))
            for label, content in annotations_of(row):
                num_annotations += 1
                ids = {"id": num_annotations, "image_id": num_images, "category_id": file_ids.get(label, label)}
                annotations.write("\n" if num_annotations == 1 else ",\n")
                annotations.write(json.dumps(ids | content))
    return num_annotations


def _image(row: Json, image_id: int, root: str) -> Json:
    image = {
        "id": image_id,
        "file_name": relative_name(row["uri"], root, row["media"], row["frame"]),
        "width": row["width"],
        "height": row["height"],
        "uri": row["uri"],
        "etag": row["etag"],
    }
    return image if row["media"] == "image" else image | {"frame": row["frame"], "pts_s": row["pts_s"]}
