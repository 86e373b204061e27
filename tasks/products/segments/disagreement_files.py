"""Disagreements of two models as tasks with exact masks for Label Studio and CVAT, and back, to be drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any

from modelkit import rle
from tasks.labels.shapes import brush_to_rle, rle_to_box_mask, rle_to_brush
from tasks.loop.findings import Disagreement, Finding
from tasks.products.segments.loop_candidates import Row

LABEL_STUDIO = "label_studio.json"
SIDES = ("champion", "candidate")


def to_files(found: Sequence[Disagreement]) -> dict[str, bytes]:
    """The files by name."""
    files = {LABEL_STUDIO: to_label_studio(found)}
    return files | {f"cvat_{side}.xml": to_cvat(found, side=side) for side in SIDES}


def to_label_studio(found: Sequence[Disagreement]) -> bytes:
    """Tasks to import into Label Studio: both models' objects as two predictions, what they differ in as data.

    The labelling interface needs ``<BrushLabels name="label" toName="image">`` with the classes' names.
    """
    return json.dumps([_task(each) for each in found], ensure_ascii=False).encode()


def _task(each: Disagreement) -> dict[str, Any]:
    data = {"image": each.uri, "image_id": each.image_id, "disagreement": round(each.weight, 6)}
    predictions = []
    for side in SIDES:
        rows = each.side(side)
        if rows:
            result = [_region(row, each.size_hw) for row in rows]
            score = round(max(row["score_calibrated"] for row in rows), 6)
            predictions.append(
                {"model_version": f"{side} {rows[0]['teacher_model_id']}", "score": score, "result": result}
            )
    height, width = each.size_hw
    meta = {"height": height, "width": width}
    return {"data": data | {"kinds": list(each.differences)}, "meta": meta, "predictions": predictions}


def _region(row: Row, size_hw: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": row["label_id"],
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_height": size_hw[0],
        "original_width": size_hw[1],
        "image_rotation": 0,
        "score": row["score_calibrated"],
        "value": {"format": "rle", "rle": rle_to_brush(row["rle"], size_hw), "brushlabels": [row["name"]]},
    }


def to_cvat(found: Sequence[Disagreement], *, side: str = "candidate") -> bytes:
    """ "CVAT for images 1.1" with one model's objects as automatic masks; the other's are what the person may draw.

    Args:
        side: "champion" or "candidate".
    """
    if side not in SIDES:
        raise ValueError(f'side must be "champion" or "candidate", got {side!r}')
    document = ElementTree.Element("annotations")
    ElementTree.SubElement(document, "version").text = "1.1"
    for number, each in enumerate(found):
        height, width = (str(value) for value in each.size_hw)
        picture = {"id": str(number), "name": each.uri, "width": width, "height": height}
        image = ElementTree.SubElement(document, "image", picture)
        for row in each.side(side):
            counts, left, top, mask_width, mask_height = rle_to_box_mask(row["rle"], each.size_hw)
            place = {"left": left, "top": top, "width": mask_width, "height": mask_height}
            ElementTree.SubElement(
                image,
                "mask",
                {"label": row["name"], "source": "auto", "rle": ", ".join(map(str, counts)), "z_order": "0"}
                | {name: str(value) for name, value in place.items()},
            )
    return bytes(ElementTree.tostring(document, encoding="utf-8", xml_declaration=True))


def read_disagreements(content: Callable[[str], bytes | None]) -> list[Disagreement]:
    """What was exported for Label Studio, each side of it as objects to be drawn; class ids are not in the file."""
    text = content(LABEL_STUDIO)
    return [] if text is None else [_drawn(task) for task in json.loads(text)]


def _drawn(task: dict[str, Any]) -> Disagreement:
    data, size_hw = task["data"], (task["meta"]["height"], task["meta"]["width"])
    findings: list[Finding] = []
    for prediction in task["predictions"]:
        side = prediction["model_version"].partition(" ")[0]
        for region in prediction["result"]:
            row = _object(region, size_hw)
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


def _object(region: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    mask = brush_to_rle(region["value"]["rle"], size_hw)
    [name] = region["value"]["brushlabels"]
    return {
        "name": name,
        "score_calibrated": region["score"],
        "rle": mask,
        "area": rle.area(mask),
        "box_xyxy": [float(value) for value in rle.bbox(mask, size_hw)],
        "height": size_hw[0],
        "width": size_hw[1],
    }
