"""Where champion and candidate disagree, the gravest images first, as tasks for a person's eyes.

Both models' objects on an image are matched by mask (largest IoU first, at least .5). An object without a partner
weighs its calibrated score, a pair of different classes the larger of both scores, a pair of one class what its masks
do not share; the image weighs their sum. Which of the two is right, nobody knows yet: that is what the person is asked.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from infra.store import Store
from modelkit import rle
from tasks.labels.shapes import rle_to_box_mask, rle_to_brush

DISAGREEMENTS_FOLDER = "disagreements/"
MATCH_IOU = 0.5
ONLY_CHAMPION, ONLY_CANDIDATE, CLASS, OUTLINE = "only_champion", "only_candidate", "class", "outline"
_WORTH = 0.05  # a pair that shares more than 95 % is an agreement


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement; a side is None where that model sees nothing. The sides are rows of ``pseudo_labels.v1``."""

    kind: str
    weight: float
    champion: dict[str, Any] | None
    candidate: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The disagreements of one image."""

    image_id: str
    media_uri: str
    size_hw: tuple[int, int]
    findings: tuple[Finding, ...]

    @property
    def weight(self) -> float:
        """How much there is to look at."""
        return sum(each.weight for each in self.findings)


def find_disagreements(champion: pa.Table, candidate: pa.Table, *, at_most: int) -> list[Disagreement]:
    """The images with the most disagreement.

    Args:
        champion, candidate: objects with masks of both models on the same items, as ``pseudo_labels.v1`` rows; give
            those that each model is sure of (accepted), or everything is a disagreement.
        at_most: how many images.
    """
    sides = [_by_image(champion), _by_image(candidate)]
    found = []
    for image_id in sorted(sides[0].keys() | sides[1].keys()):
        mine = [side.get(image_id, []) for side in sides]
        findings = tuple(_findings(mine[0], mine[1]))
        if findings:
            row = (mine[0] or mine[1])[0]
            found.append(Disagreement(image_id, row["media_uri"], (row["height"], row["width"]), findings))
    found.sort(key=lambda each: (-each.weight, each.image_id))
    return found[:at_most]


def _by_image(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        # A model may draw no pixel in a box: nothing to match, and nothing that a person could take over.
        if row["mask_rle"] is not None and rle.area(row["mask_rle"]) > 0:
            rows[row["image_id"]].append(row)
    return rows


def _findings(champion: Sequence[dict[str, Any]], candidate: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    ious = _ious(champion, candidate)
    left, right = set(range(len(champion))), set(range(len(candidate)))
    order = np.argsort(-ious, axis=None, kind="stable") if ious.size else np.zeros(0, np.int64)
    for place in order.tolist():
        i, j = divmod(place, len(candidate))
        if ious[i, j] < MATCH_IOU:
            break
        if i not in left or j not in right:
            continue
        left.discard(i)
        right.discard(j)
        if champion[i]["class_id"] != candidate[j]["class_id"]:
            yield Finding(CLASS, max(champion[i]["score_cal"], candidate[j]["score_cal"]), champion[i], candidate[j])
        elif 1.0 - ious[i, j] > _WORTH:
            yield Finding(OUTLINE, round(float(1.0 - ious[i, j]), 6), champion[i], candidate[j])
    yield from (Finding(ONLY_CHAMPION, champion[i]["score_cal"], champion[i], None) for i in sorted(left))
    yield from (Finding(ONLY_CANDIDATE, candidate[j]["score_cal"], None, candidate[j]) for j in sorted(right))


def _ious(champion: Sequence[dict[str, Any]], candidate: Sequence[dict[str, Any]]) -> np.ndarray:
    if not champion or not candidate:
        return np.zeros((len(champion), len(candidate)))
    size = [champion[0]["height"], champion[0]["width"]]
    sides = [[{"size": size, "counts": row["mask_rle"]} for row in side] for side in (champion, candidate)]
    return np.asarray(coco_mask.iou(sides[0], sides[1], [0] * len(candidate)))


def to_label_studio(found: Sequence[Disagreement]) -> bytes:
    """Tasks to import into Label Studio: both models' objects as two predictions, what they differ in as data.

    The labelling interface needs ``<BrushLabels name="label" toName="image">`` with the classes' names.
    """
    return json.dumps([_task(each) for each in found], ensure_ascii=False).encode()


def _task(each: Disagreement) -> dict[str, Any]:
    kinds = sorted({finding.kind for finding in each.findings})
    data = {"image": each.media_uri, "image_id": each.image_id, "disagreement": round(each.weight, 6), "kinds": kinds}
    predictions = []
    for side in ("champion", "candidate"):
        rows = [row for finding in each.findings if (row := getattr(finding, side)) is not None]
        if rows:
            result = [_region(row, each.size_hw) for row in rows]
            score = round(max(row["score_cal"] for row in rows), 6)
            predictions.append(
                {"model_version": f"{side} {rows[0]['teacher_model_id']}", "score": score, "result": result}
            )
    height, width = each.size_hw
    return {"data": data, "meta": {"height": height, "width": width}, "predictions": predictions}


def _region(row: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": row["label_id"],
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_height": size_hw[0],
        "original_width": size_hw[1],
        "image_rotation": 0,
        "score": row["score_cal"],
        "value": {
            "format": "rle",
            "rle": rle_to_brush(row["mask_rle"], size_hw),
            "brushlabels": [row["class_name"]],
        },
    }


def to_cvat(found: Sequence[Disagreement], *, side: str = "candidate") -> bytes:
    """ "CVAT for images 1.1" with one model's objects as automatic masks; the other's are what the person may draw.

    Args:
        side: "champion" or "candidate".
    """
    if side not in ("champion", "candidate"):
        raise ValueError(f'side must be "champion" or "candidate", got {side!r}')
    document = ElementTree.Element("annotations")
    ElementTree.SubElement(document, "version").text = "1.1"
    for number, each in enumerate(found):
        height, width = (str(value) for value in each.size_hw)
        picture = {"id": str(number), "name": each.media_uri, "width": width, "height": height}
        image = ElementTree.SubElement(document, "image", picture)
        for finding in each.findings:
            row = getattr(finding, side)
            if row is not None:
                counts, left, top, mask_width, mask_height = rle_to_box_mask(row["mask_rle"], each.size_hw)
                place = {"left": left, "top": top, "width": mask_width, "height": mask_height}
                ElementTree.SubElement(
                    image,
                    "mask",
                    {"label": row["class_name"], "source": "auto", "rle": ", ".join(map(str, counts)), "z_order": "0"}
                    | {name: str(value) for name, value in place.items()},
                )
    return bytes(ElementTree.tostring(document, encoding="utf-8", xml_declaration=True))


def disagreements_key(run_id: str, round_number: int, name: str) -> str:
    """Where a file with the tasks of a round lies."""
    return f"{DISAGREEMENTS_FOLDER}{run_id}/round={round_number:04d}/{name}"


def write_disagreements(store: Store, found: Sequence[Disagreement], run_id: str, round_number: int) -> list[str]:
    """Put the tasks of a round into the output, for both tools; returns their keys. No disagreement, no files."""
    if not found:
        return []
    files = {
        "label_studio.json": to_label_studio(found),
        "cvat_champion.xml": to_cvat(found, side="champion"),
        "cvat_candidate.xml": to_cvat(found, side="candidate"),
    }
    keys = {name: disagreements_key(run_id, round_number, name) for name in files}
    for name, data in files.items():
        store.put(keys[name], data)
    return list(keys.values())
