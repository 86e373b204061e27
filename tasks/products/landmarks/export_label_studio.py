"""Predictions as tasks for Label Studio: a rectangle per object, and its keypoints, which name it as their parent.

The labelling interface needs ``<RectangleLabels name="box" toName="image">`` with the classes' names and
``<KeyPointLabels name="keypoint" toName="image">`` with the names of the keypoints. Places are shares of the image, in
percent, from its top-left corner, as ours are, so nothing is taken off.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.store import Store
from tasks.output.views import Views
from tasks.report.classes import model_of
from tasks.report.export_files import batches

_ITEMS = """
SELECT uri, media, frame, width, height, names, scores, boxes_xyxy, keypoints_xy, keypoint_scores, visibility,
       keypoint_set
FROM items WHERE status = 'ok' ORDER BY uri, frame
"""
_POINT_SIZE = 0.5  # percent of the image's width, of the dot that Label Studio draws
Json = dict[str, Any]


def write_label_studio(views: Views, store: Store, key: str) -> int:
    """Write one JSON file, a task per item, and return the number of objects."""
    objects, model = 0, model_of(views)
    with tempfile.TemporaryDirectory(prefix="visionmill-label-studio-") as folder:
        path = Path(folder) / "tasks.json"
        with path.open("w", encoding="utf-8") as out:
            before = "["
            for rows in batches(views, _ITEMS):
                for row in rows:
                    out.write(f"{before}\n{json.dumps(_task(row, model), ensure_ascii=False)}")
                    before = ","
                    objects += len(row["names"])
            out.write("\n]\n" if before == "," else "[]\n")
        store.put_file_if_absent(key, path)
    return objects


def _task(row: Json, model: str) -> Json:
    frame = {"frame": row["frame"]} if row["media"] == "video" else {}
    result = [region for place in range(len(row["names"])) for region in _regions(row, place)]
    score = round(max(row["scores"], default=0.0), 6)
    return {
        "data": {"image": row["uri"], **frame},
        "predictions": [{"model_version": model, "score": score, "result": result}],
    }


def _regions(row: Json, place: int) -> Iterator[Json]:
    size_hw, box_id = (row["height"], row["width"]), f"object-{place}"
    yield box_region(box_id, row["boxes_xyxy"][place], row["names"][place], row["scores"][place], size_hw)
    for k, point in enumerate(row["keypoints_xy"][place]):
        if point is not None:
            name, score = row["keypoint_set"]["names"][k], row["keypoint_scores"][place][k]
            region = point_region(f"{box_id}-{k}", box_id, point, name, score, size_hw)
            yield {**region, "meta": {"visibility": row["visibility"][place][k]}}


def box_region(region_id: str, box_xyxy: Sequence[float], name: str, score: float, size_hw: tuple[int, int]) -> Json:
    """The rectangle of an object.

    Args:
        region_id: of the rectangle, for its points.
        box_xyxy: source pixels.
        name: of its class.
        score: in [0, 1].
        size_hw: of the image.
    """
    x0, y0, x1, y1 = box_xyxy
    high, wide = (100 / side for side in size_hw)
    box = {"x": x0 * wide, "y": y0 * high, "width": (x1 - x0) * wide, "height": (y1 - y0) * high, "rotation": 0}
    return {
        "id": region_id,
        "type": "rectanglelabels",
        "from_name": "box",
        **_common(size_hw),
        "score": round(score, 6),
        "value": {**box, "rectanglelabels": [name]},
    }


def point_region(
    region_id: str, box_id: str, point_xy: Sequence[float], name: str, score: float, size_hw: tuple[int, int]
) -> Json:
    """A point of an object, whose rectangle is ``box_id``; the rest as in :func:`box_region`."""
    high, wide = (100 / side for side in size_hw)
    spot = {"x": point_xy[0] * wide, "y": point_xy[1] * high, "width": _POINT_SIZE}
    return {
        "id": region_id,
        "parentID": box_id,
        "type": "keypointlabels",
        "from_name": "keypoint",
        **_common(size_hw),
        "score": round(score, 6),
        "value": {**spot, "keypointlabels": [name]},
    }


def _common(size_hw: tuple[int, int]) -> Json:
    height, width = size_hw
    common = {"original_width": width, "original_height": height, "image_rotation": 0}
    return common | {"to_name": "image", "origin": "prediction"}
