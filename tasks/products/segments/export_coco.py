"""COCO's instance JSON: opens in pycocotools; images and annotations in the order of (uri, frame, instance)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.store import Store
from tasks.output.views import Views
from tasks.report.coco_file import write_coco_file

_COLUMNS = "labels, scores, boxes_xyxy, areas, rles, is_thing, track_ids"


def write_coco(views: Views, store: Store, key: str) -> int:
    """Write one JSON file and return the number of annotations; see :func:`tasks.report.coco_file.write_coco_file`.

    ``annotations`` hold segmentation (compressed run lengths as text), bbox (xywh), area, score, iscrowd 0, and as
    extras source ("model", so that nobody takes them for labels), track_id and is_thing.
    """
    return write_coco_file(views, store, key, columns=_COLUMNS, annotations_of=_annotations)


def _annotations(row: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    size = [row["height"], row["width"]]
    for index, label in enumerate(row["labels"] or ()):
        x0, y0, x1, y1 = row["boxes_xyxy"][index]
        annotation: dict[str, Any] = {
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
        yield label, annotation
