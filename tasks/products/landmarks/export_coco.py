"""COCO's keypoint JSON: opens in pycocotools; images and annotations in the order of (uri, frame, object).

COCO counts keypoints from the centre of the top-left pixel: half a pixel is taken off (``modelkit.carriers``), not off
the corners of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.store import Store
from tasks.output.views import Views
from tasks.report.coco_file import write_coco_file

_COLUMNS = "labels, scores, boxes_xyxy, keypoints_xy, keypoint_scores, visibility, track_ids"


def write_coco(views: Views, store: Store, key: str) -> int:
    """Write one JSON file and return the number of annotations; see :func:`tasks.report.coco_file.write_coco_file`.

    ``categories`` hold the names of ``keypoints`` and ``skeleton`` (pairs that count from 1, as COCO has them), and as
    extras ``flip_pairs`` (of names) and ``sigmas``. ``annotations`` hold keypoints (x, y, v; 0, 0, 0 where one is
    absent), num_keypoints, bbox (xywh), area (of the box), score, iscrowd 0, and as extras keypoint_scores, source
    ("model") and track_id.
    """
    return write_coco_file(views, store, key, columns=_COLUMNS, annotations_of=_annotations, category=_category(views))


def _category(views: Views) -> dict[str, Any]:
    """What every class says of its keypoints: the models of a version have one set of them."""
    found = views.connection.sql("SELECT any_value(keypoint_set) FROM items WHERE keypoint_set IS NOT NULL").fetchall()
    said = found[0][0]
    if said is None:
        return {}
    names = said["names"]
    return {
        "keypoints": names,
        "skeleton": [[start + 1, end + 1] for start, end in said["skeleton"]],
        "flip_pairs": [[names[left], names[right]] for left, right in said["flip_pairs"]],
        "sigmas": said["sigmas"],
    }


def _annotations(row: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, label in enumerate(row["labels"] or ()):
        x0, y0, x1, y1 = row["boxes_xyxy"][place]
        visibility = row["visibility"][place]
        annotation: dict[str, Any] = {
            "keypoints": list(_triples(row["keypoints_xy"][place], visibility)),
            "num_keypoints": sum(v > 0 for v in visibility),
            "keypoint_scores": [round(score, 6) for score in row["keypoint_scores"][place]],
            "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
            "area": round(max(0.0, x1 - x0) * max(0.0, y1 - y0), 3),
            "score": round(row["scores"][place], 6),
            "source": "model",
            "iscrowd": 0,
        }
        if row["track_ids"] is not None and row["track_ids"][place] is not None:
            annotation["track_id"] = row["track_ids"][place]
        yield label, annotation


def _triples(points: list[list[float] | None], visibility: list[int]) -> Iterator[float]:
    for point, v in zip(points, visibility, strict=True):
        yield from (0, 0, 0) if point is None else (round(point[0] - 0.5, 3), round(point[1] - 0.5, 3), v)
