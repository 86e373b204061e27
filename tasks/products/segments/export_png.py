"""Pictures of ids beside the images: ``masks/a/b.png`` holds classes, ``instances/a/b.png`` things.

=============================  ===================================================================================
``masks/``                     the class id (``label``) of each pixel, 255 where nothing was found. 8 bits with a
                               palette of the report's colours; 16 bits grey, and 65535 for nothing, where a model has
                               ids from 255 on.
``instances/``                 1 + the instance's number in its row (column ``instance`` of the view), 0 where nothing
                               was found; 16 bits grey.
``classes.json``               class id -> name, as label readers take it; ``palette.json`` has name, colour, thing.
``instances.csv``              which uri, frame, class, score and track a value of a file stands for.
=============================  ===================================================================================

Where instances overlap the surest one is on top, in both pictures, and things lie on stuff. With ``--images`` the
folder is a set of labels that ``train`` reads.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.errors import UsageError
from infra.store import Store
from modelkit.rle import decode
from tasks.media.decoding import EntryReader
from tasks.output.views import Views
from tasks.report.classes import classes_of
from tasks.report.drawing import Colour, colour_of, stuff_colour_of
from tasks.report.export_files import ItemNames, Missing, Puts, batches
from tasks.report.export_images import image_files, put_images

_MOST_INSTANCES = 65_535
_ITEMS = """
SELECT uri, media, frame, shard_id, width, height, labels, names, scores, rles, is_thing, track_ids, places
FROM items LEFT JOIN (SELECT uri, frame, list(instance ORDER BY instance) AS places FROM instances GROUP BY ALL)
     USING (uri, frame)
WHERE status = 'ok' ORDER BY uri, frame
"""
Row = dict[str, Any]


def write_png(views: Views, store: Store, *, images: bool = False) -> tuple[int, int]:
    """Write all maps and what explains them; returns (instances, files).

    Args:
        views: open views of the output. store: of the destination.
        images: write the images and frames, too, under ``images/``.

    Raises:
        UsageError: the model finds boxes without masks.
        DatasetError: an image cannot be read any more; everything else is there by then.
    """
    classes, colours = classes_of(views), _colours(views)
    void = 255 if max(classes, default=0) < 255 else 65_535
    names, reader, missing = ItemNames(views), EntryReader(), Missing(" beside their maps")
    instances = 0
    with tempfile.TemporaryDirectory(prefix="visionmill-png-") as folder, Puts(store) as puts:
        path = Path(folder) / "instances.csv"
        with path.open("w", encoding="utf-8", newline="") as out:
            index = csv.writer(out)
            index.writerow(["file", "value", "uri", "frame", "label", "name", "score", "track_id"])
            for rows in batches(views, _ITEMS):
                for row in rows:
                    key = f"{names.of(row)}.png"
                    by_class, by_instance = maps(row, void)
                    puts.put(f"masks/{key}", _class_picture(by_class, void, colours))
                    puts.put(f"instances/{key}", _png(by_instance))
                    index.writerows(_lines(row, f"instances/{key}"))
                    instances += len(row["labels"])
                if images:
                    put_images(puts, names, image_files(views, rows, reader), missing)
        store.put_file_if_absent("instances.csv", path)
    store.put("classes.json", json.dumps(classes, ensure_ascii=False, indent=1).encode())
    store.put("palette.json", json.dumps(_palette(classes, colours, void), ensure_ascii=False, indent=1).encode())
    missing.tell()
    return instances, puts.count + 3


def maps(row: Row, void: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) class ids, ``void`` where nothing is, and (H, W) numbers of instances from 1, 0 where nothing is; uint16.

    Args:
        row: of ``items``, with ``places``: the instances' own numbers, from 0.
    """
    size_hw = row["height"], row["width"]
    by_class, by_instance = np.full(size_hw, void, np.uint16), np.zeros(size_hw, np.uint16)
    for index in sorted(range(len(row["labels"])), key=lambda index: (row["is_thing"][index], row["scores"][index])):
        mask = None if row["rles"] is None else row["rles"][index]
        if mask is None:
            raise UsageError("the model finds boxes without masks", hint="export --to coco, yolo, flat or csv")
        if row["places"][index] >= _MOST_INSTANCES:
            raise UsageError(f"{row['uri']} has more instances than 16 bits count", hint="--min-score leaves some out")
        inside = decode(mask, size_hw)
        by_class[inside], by_instance[inside] = row["labels"][index], row["places"][index] + 1
    return by_class, by_instance


def _colours(views: Views) -> dict[int, tuple[bool, Colour]]:
    """Class id -> whether it is a thing, and its colour in pictures; of those that were found."""
    rows = views.connection.sql("SELECT label, bool_or(is_thing) FROM instances GROUP BY label").fetchall()
    return {label: (thing, colour_of(label) if thing else stuff_colour_of(label)) for label, thing in rows}


def _class_picture(by_class: np.ndarray, void: int, colours: Mapping[int, tuple[bool, Colour]]) -> bytes:
    if void != 255:
        return _png(by_class)
    picture = Image.fromarray(by_class.astype(np.uint8))
    palette = [colours[label][1] if label in colours else colour_of(label) for label in range(255)]
    picture.putpalette(np.array([*palette, (0, 0, 0)], np.uint8).tobytes())
    return _saved(picture)


def _png(values: np.ndarray) -> bytes:
    return _saved(Image.fromarray(values.astype(np.uint16)))


def _saved(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=4)
    return out.getvalue()


def _lines(row: Row, key: str) -> list[list[Any]]:
    tracks = row["track_ids"] or [None] * len(row["labels"])
    places = row["places"] or []
    return [
        [key, place + 1, row["uri"], row["frame"], label, name, round(score, 6), track]
        for place, label, name, score, track in zip(
            places, row["labels"], row["names"], row["scores"], tracks, strict=True
        )
    ]


def _palette(classes: Mapping[int, str], colours: Mapping[int, tuple[bool, Colour]], void: int) -> dict[str, Any]:
    def described(label: int, name: str) -> dict[str, Any]:
        thing, colour = colours.get(label, (True, colour_of(label)))
        return {"id": label, "name": name, "rgb": colour, "is_thing": thing}

    return {"void": void, "classes": [described(label, name) for label, name in classes.items()]}
