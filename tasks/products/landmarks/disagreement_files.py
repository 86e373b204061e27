"""Disagreements of two models about points as tasks for Label Studio, and back, to be drawn.

The labelling interface needs ``<RectangleLabels name="box" toName="image">`` with the classes' names and
``<KeyPointLabels name="keypoint" toName="image">`` with the names of the points, as for ``export --to label_studio``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tasks.loop.findings import Disagreement, Finding
from tasks.products.landmarks.export_label_studio import box_region, point_region
from tasks.products.landmarks.loop_candidates import Row, by_object

LABEL_STUDIO = "label_studio.json"
SIDES = ("champion", "candidate")
Json = dict[str, Any]


def to_files(found: Sequence[Disagreement]) -> dict[str, bytes]:
    """One file: both models' points as two predictions, each with the boxes of their objects."""
    return {LABEL_STUDIO: json.dumps([_task(each) for each in found], ensure_ascii=False).encode()}


def _task(each: Disagreement) -> Json:
    height, width = each.size_hw
    predictions = [_prediction(each, side) for side in SIDES if each.side(side)]
    data = {"image": each.uri, "image_id": each.image_id, "disagreement": round(each.weight, 6)}
    return {
        "data": data | {"kinds": list(each.differences)},
        "meta": {"height": height, "width": width},
        "predictions": predictions,
    }


def _prediction(each: Disagreement, side: str) -> Json:
    rows = each.side(side)
    result = [region for mine in by_object(rows) for region in _regions(mine, each.size_hw)]
    score = round(max(row["score_calibrated"] for row in rows), 6)
    return {"model_version": f"{side} {rows[0]['teacher_model_id']}", "score": score, "result": result}


def _regions(mine: Sequence[Row], size_hw: tuple[int, int]) -> Iterator[Json]:
    first = mine[0]
    box_id = f"object-{first['object']}"
    yield box_region(box_id, first["box_xyxy"], first["object_name"], first["object_score"], size_hw)
    for row in mine:
        place = (row["x"], row["y"])
        yield point_region(row["label_id"], box_id, place, row["name"], row["score_calibrated"], size_hw)


def read_disagreements(content: Callable[[str], bytes | None]) -> list[Disagreement]:
    """What was exported, each side of it as points to be drawn; class ids are not in the file."""
    text = content(LABEL_STUDIO)
    return [] if text is None else [_drawn(task) for task in json.loads(text)]


def _drawn(task: Json) -> Disagreement:
    data, size_hw = task["data"], (task["meta"]["height"], task["meta"]["width"])
    findings: list[Finding] = []
    for prediction in task["predictions"]:
        side = prediction["model_version"].partition(" ")[0]
        for row in _points(prediction["result"], size_hw):
            findings.append(Finding("", 0.0, **{name: row if name == side else None for name in SIDES}))
    frame = data["image_id"].removeprefix(data["image"]).removeprefix("#")
    return Disagreement(
        image_id=data["image_id"],
        uri=data["image"],
        frame=int(frame) if frame else None,
        size_hw=size_hw,
        findings=tuple(findings),
        differences=tuple(data["kinds"]),
        weight=data["disagreement"],
    )


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
