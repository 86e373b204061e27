"""Disagreements of two models about points as tasks for Label Studio, and back, to be drawn.

The labelling interface needs ``<RectangleLabels name="box" toName="image">`` with the classes' names and
``<KeyPointLabels name="keypoint" toName="image">`` with the names of the points, as for ``export --to label_studio``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tasks.loop.findings import Disagreement
from tasks.loop.label_studio_tasks import LABEL_STUDIO, Json, read_tasks, write_tasks
from tasks.products.landmarks.export_label_studio import box_region, point_region
from tasks.products.landmarks.loop_candidates import Row, by_object


def to_files(found: Sequence[Disagreement]) -> dict[str, bytes]:
    """One file: both models' points as two predictions, each with the boxes of their objects."""
    return {LABEL_STUDIO: write_tasks(found, _regions)}


def _regions(rows: Sequence[Row], size_hw: tuple[int, int]) -> Iterator[Json]:
    for mine in by_object(rows):
        first = mine[0]
        box_id = f"object-{first['object']}"
        yield box_region(box_id, first["box_xyxy"], first["object_name"], first["object_score"], size_hw)
        for row in mine:
            place = (row["x"], row["y"])
            yield point_region(row["label_id"], box_id, place, row["name"], row["score_calibrated"], size_hw)


def read_disagreements(content: Callable[[str], bytes | None]) -> list[Disagreement]:
    """What was exported, each side of it as points to be drawn; class ids are not in the file."""
    return read_tasks(content(LABEL_STUDIO), _points)


def _points(regions: Sequence[Json], size_hw: tuple[int, int]) -> Iterator[Json]:
    high, wide = (side / 100 for side in size_hw)
    boxes = {region["id"]: region for region in regions if region["type"] == "rectanglelabels"}
    places = {name: number for number, name in enumerate(boxes)}
    for region in regions:
        if region["type"] != "keypointlabels":
            continue
        parent, value = boxes[region["parentID"]], region["value"]
        box = parent["value"]
        x0, y0 = box["x"] * wide, box["y"] * high
        yield {
            "name": value["keypointlabels"][0],
            "score_calibrated": region["score"],
            "x": value["x"] * wide,
            "y": value["y"] * high,
            "object": places[region["parentID"]],
            "object_label": 1,
            "object_name": box["rectanglelabels"][0],
            "object_score": parent["score"],
            "box_xyxy": [x0, y0, x0 + box["width"] * wide, y0 + box["height"] * high],
        }
