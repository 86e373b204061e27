"""Disagreements of two models as tasks with exact masks for Label Studio and CVAT, and back, to be drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from modelkit import rle
from tasks.labels.shapes import brush_to_rle, rle_to_box_mask, rle_to_brush
from tasks.loop.findings import Disagreement
from tasks.loop.label_studio_tasks import LABEL_STUDIO, SIDES, Json, read_tasks, write_tasks
from tasks.products.segments.loop_candidates import Row


def to_files(found: Sequence[Disagreement]) -> dict[str, bytes]:
    """The files by name."""
    files = {LABEL_STUDIO: to_label_studio(found)}
    return files | {f"cvat_{side}.xml": to_cvat(found, side=side) for side in SIDES}


def to_label_studio(found: Sequence[Disagreement]) -> bytes:
    """Tasks to import into Label Studio: both models' objects as two predictions, what they differ in as data.

    The labelling interface needs ``<BrushLabels name="label" toName="image">`` with the classes' names.
    """
    return write_tasks(found, _regions)


def _regions(rows: Sequence[Row], size_hw: tuple[int, int]) -> Iterator[Json]:
    for row in rows:
        yield {
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
    return read_tasks(content(LABEL_STUDIO), _objects)


def _objects(regions: Sequence[Json], size_hw: tuple[int, int]) -> Iterator[Row]:
    for region in regions:
        yield _object(region, size_hw)


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
