"""YOLO segmentation labels: ``labels/<image>.txt`` with one line per instance, ``data.yaml`` and ``images.csv``.

A line is ``class x0 y0 x1 y1 ...``, a polygon in fractions of width and height. Trainers cut its points to whole pixels
and fill what they enclose, the outline included (``cv2.fillPoly`` on int32), COCO's tools fill between the cracks of
pixels. So the outline runs through the pixels of the mask's edge, just inside their outer cracks: both fill it exactly.
Two things that YOLO's form cannot say:

- An instance of several parts is still one line: the parts are joined by bridges of no width between their nearest
  corners (as Ultralytics' own converter does), so the number of instances is kept; trainers draw them one pixel wide.
  Holes are joined by bridges, too, which lie in the mask.
- Images that differ only in their extension would share a label file; their labels keep the extension (``a.jpg.txt``),
  and ``images.csv`` says which label file belongs to which uri and frame.

Classes are counted from 0 without gaps, in the order of the model's ids. An image without instances has an empty file.
``data.yaml`` says that a model made the labels, and which. On request the images lie beside them: copied as they are
where trainers read them, else as PNG, and frames of videos as JPEG.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.store import Store
from modelkit.rle import to_polygons
from tasks.media.decoding import EntryReader
from tasks.output.views import Views
from tasks.report.classes import classes_of, model_of
from tasks.report.export_files import ItemNames, Missing, Puts, batches
from tasks.report.export_images import image_files, put_images

INSET = 0.05
"""Pixels from the crack: survives seven digits and float32 in pictures of 10,000 px, and COCO's grid of a fifth."""
_SAME_IMAGES = (
    "# val is train, as trainers ask for one and a job divides nothing: figures on it say how well these labels are",
    "# repeated, not how good a model is. To measure that, let val name images with labels that people made.",
)
_ITEMS = """
SELECT uri, media, frame, shard_id, width, height, labels, boxes_xyxy, rles
FROM items WHERE status = 'ok' ORDER BY uri, frame
"""


def write_yolo(views: Views, store: Store, *, images: bool = False) -> tuple[int, int]:
    """Write all label files, images.csv and data.yaml; returns (instances, files).

    Args:
        views: open views of the output. store: of the destination.
        images: write the images and frames, too, under the names of their labels.

    Raises:
        DatasetError: an image cannot be read any more; everything else is there by then.
    """
    classes = classes_of(views)
    numbers = {label: number for number, label in enumerate(classes)}
    names, reader, missing = ItemNames(views), EntryReader(), Missing(" beside their labels")
    instances = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-yolo-") as folder, Puts(store) as puts:
        path = Path(folder) / "images.csv"
        with path.open("w", encoding="utf-8", newline="") as out:
            index = csv.writer(out)
            index.writerow(["label_file", "uri", "frame"])
            for rows in batches(views, _ITEMS):
                for row in rows:
                    name, lines = f"labels/{names.of(row)}.txt", label_lines(row, numbers)
                    puts.put(name, ("\n".join(lines) + "\n").encode())
                    index.writerow([name, row["uri"], row["frame"]])
                    instances += len(lines)
                if images:
                    put_images(puts, names, image_files(views, rows, reader), missing)
        store.put_file_if_absent("images.csv", path)
    store.put("data.yaml", data_yaml(list(classes.values()), model_of(views), images=images).encode())
    missing.tell()
    return instances, puts.count + 2


def label_lines(row: dict[str, Any], numbers: dict[int, int]) -> list[str]:
    """One line per instance of an item whose mask (or box, for models without masks) is not empty."""
    height, width = row["height"], row["width"]
    lines = []
    for index, label in enumerate(row["labels"] or ()):
        counts = row["rles"][index] if row["rles"] is not None else None
        polygon = (
            _box(row["boxes_xyxy"][index])
            if counts is None
            else joined(to_polygons(counts, (height, width), inset=INSET))
        )
        if len(polygon):
            fractions = (polygon / [width, height]).clip(0, 1).reshape(-1)
            lines.append(" ".join([str(numbers[label]), *(f"{value:.7g}" for value in fractions)]))
    return lines


def _box(xyxy: Sequence[float]) -> np.ndarray:
    x0, y0, x1, y1 = xyxy
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(k, 2) float: one closed polygon through all parts, over bridges there and back between nearest corners.

    Args:
        parts: (k_i, 2) float arrays of x, y; none gives an empty polygon.
    """
    if not parts:
        return np.zeros((0, 2))
    path = parts[0]
    for part in parts[1:]:
        distances = ((path[:, None] - part[None]) ** 2).sum(-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        detour = np.concatenate([part[there:], part[: there + 1]])
        path = np.concatenate([path[: here + 1], detour, path[here:]])
    return path


def data_yaml(names: Sequence[str], model: str = "", *, images: bool = False) -> str:
    """What trainers read first. Strings are written as JSON, which YAML includes, so no name can break the file.

    It names no ``path``: Ultralytics looks for the images beside this file then, and for "." where it was called from.
    """
    lines = [] if images else ["# labels only: put the images beside them, in images/, under the names in images.csv"]
    lines += ["source: model", f"model: {json.dumps(model)}"]  # so that nobody takes them for people's
    lines += [*_SAME_IMAGES, "train: images", "val: images", f"nc: {len(names)}", "names:"]
    return "\n".join(lines + [f"  {number}: {json.dumps(name)}" for number, name in enumerate(names)]) + "\n"
