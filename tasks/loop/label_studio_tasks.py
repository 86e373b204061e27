"""Disagreements as tasks of Label Studio, and back: a prediction for each model, and what they differ in as data.

How rows of a kind become regions of a task, and regions rows, the kind says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tasks.loop.findings import Disagreement, Finding, Row

LABEL_STUDIO = "label_studio.json"
SIDES = ("champion", "candidate")

Json = dict[str, Any]
RegionsOf = Callable[[Sequence[Row], tuple[int, int]], Iterable[Json]]
"""Rows of one side, and rows and columns of the source, to regions."""
RowsOf = Callable[[Sequence[Json], tuple[int, int]], Iterable[Row]]
"""The way back."""


def write_tasks(found: Sequence[Disagreement], regions_of: RegionsOf) -> bytes:
    """The JSON to import: both models' objects as two predictions, each as sure as its surest row."""
    return json.dumps([_task(each, regions_of) for each in found], ensure_ascii=False).encode()


def _task(each: Disagreement, regions_of: RegionsOf) -> Json:
    height, width = each.size_hw
    data = {"image": each.uri, "image_id": each.image_id, "disagreement": round(each.weight, 6)}
    return {
        "data": data | {"kinds": list(each.differences)},
        "meta": {"height": height, "width": width},
        "predictions": [_prediction(each, side, regions_of) for side in SIDES if each.side(side)],
    }


def _prediction(each: Disagreement, side: str, regions_of: RegionsOf) -> Json:
    rows = each.side(side)
    score = round(max(row["score_calibrated"] for row in rows), 6)
    model = f"{side} {rows[0]['teacher_model_id']}"
    return {"model_version": model, "score": score, "result": list(regions_of(rows, each.size_hw))}


def read_tasks(text: bytes | None, rows_of: RowsOf) -> list[Disagreement]:
    """What was written, each side of it as rows to be drawn; class ids are not in the file. None: nothing was."""
    return [] if text is None else [_read(task, rows_of) for task in json.loads(text)]


def _read(task: Json, rows_of: RowsOf) -> Disagreement:
    data, size_hw = task["data"], (task["meta"]["height"], task["meta"]["width"])
    findings: list[Finding] = []
    for prediction in task["predictions"]:
        side = prediction["model_version"].partition(" ")[0]
        for row in rows_of(prediction["result"], size_hw):
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
