"""Loops that must be refused: something essential is broken in each, and nobody tells the loop.

| control | what is done | what the loop sees |
|---|---|---|
| shuffled | accepted labels of one image are taught on another | a student that learnt from them |
| copies | the unlabelled images are copies of L | nothing left to label |
| poisoned | every label of L names the wrong class | a teacher that C contradicts |
| other_domain | the unlabelled images stand on their heads (a 6 is a 9) | accepted labels that an audit contradicts |
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.selftraining_data import ensure_data, truth_of
from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.steps import Steps, plain_steps
from infra.errors import UsageError
from tasks.loop.data import LoopData
from tasks.loop.selection import Selection

if TYPE_CHECKING:  # it imports this module
    from benchmarks.selftraining import Setting

Change = Callable[[Any], Any]


def changed_steps(changes: Mapping[str, Change]) -> Steps:
    """Steps whose results are changed, by the end of their names."""

    def step(name: str, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        found = plain_steps(name, function, *args, **kwargs)
        return next((change(found) for end, change in changes.items() if name.endswith(end)), found)

    return step


def shuffled(selection: Selection) -> Selection:
    """Every image's pseudo-labels on the image that follows it, round and round; nothing else changes."""
    labels = selection.labels
    places = {row["image_id"]: row for row in labels.select(["image_id", "uri", "frame"]).to_pylist()}
    names = sorted(places)
    following = dict(zip(names, [*names[1:], *names[:1]], strict=True))
    moved = [places[following[name]] for name in labels["image_id"].to_pylist()]
    for column in ("image_id", "uri", "frame"):
        place, field = labels.schema.get_field_index(column), labels.schema.field(column)
        labels = labels.set_column(place, field, pa.array([row[column] for row in moved], field.type))
    return Selection(labels, selection.images)


def poisoned(data: LoopData) -> LoopData:
    """Every object of L has the name of the next class; C and G stay as they are."""
    classes = [each.id for each in data.labels.classes]
    following = dict(zip(classes, [*classes[1:], *classes[:1]], strict=True))
    names = {each.id: each.name for each in data.labels.classes}
    taught = set(data.split("train").table["image_id"].to_pylist())
    rows = data.labels.table.to_pylist()
    for row in rows:
        if row["image_id"] in taught:
            row["labels"] = [following[label] for label in row["labels"]]
            row["names"] = [names[label] for label in row["labels"]]
    table = pa.Table.from_pylist(rows, schema=data.labels.table.schema)
    return dataclasses.replace(data, labels=dataclasses.replace(data.labels, table=table))


def write_copies(labelled: Path, images: Sequence[str], folder: Path) -> Path:
    """Copies of labelled images under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        shutil.copyfile(labelled.parent / name, folder / f"copy-{Path(name).name}")
    return folder


def write_on_their_heads(truth: Path, images: int, folder: Path) -> Path:
    """Images of a COCO data set upside down, with the labels that belong to them; the new JSON."""
    content = json.loads(truth.read_text())
    chosen = content["images"][:images]
    height = {image["id"]: image["height"] for image in chosen}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in chosen:
        with Image.open(truth.parent / image["file_name"]) as picture:
            picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / image["file_name"])
    annotations = [_on_its_head(each, height[each["image_id"]]) for each in content["annotations"]
                   if each["image_id"] in height]  # fmt: skip
    path = folder / "annotations.json"
    path.write_text(json.dumps({**content, "images": chosen, "annotations": annotations}))
    return path


def _on_its_head(annotation: Mapping[str, Any], height: int) -> dict[str, Any]:
    mask = coco_mask.decode(annotation["segmentation"])[::-1]
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode("ascii")
    x, y, width, rows = annotation["bbox"]
    kept = {name: annotation[name] for name in ("id", "image_id", "category_id", "area", "iscrowd")}
    box = [x, height - y - rows, width, rows]
    return {**kept, "bbox": box, "segmentation": {**annotation["segmentation"], "counts": counts}}


def verdict_on(parameters: RetrainParameters, step: Steps = plain_steps) -> tuple[bool, list[str]]:
    """Whether a loop was refused, and the reasons: of the gate, or of the loop itself before anything was taught."""
    try:
        [outcome] = run_retrain(parameters, orchestrated=False, step=step)["rounds"]
    except UsageError as error:
        return True, [str(error)]
    return not outcome["gate"]["passed"], outcome["gate"]["reasons"]


def measure_controls(settings: Sequence[Setting], work: Path) -> list[dict[str, Any]]:
    """All controls of each setting, those of earlier invocations included."""
    from benchmarks.selftraining import keep_record, known_record

    found = []
    for setting in settings:
        for name in ("shuffled", "copies", "poisoned", "other_domain"):
            key = f"control-{name}-{setting.name}"
            record = known_record(work, key)
            if record is None:
                refused, reasons = _carry_out(name, setting, work)
                record = {
                    "task": setting.task, "split": setting.split, "seed": setting.seed,
                    "control": name, "refused": refused, "reasons": reasons,
                }  # fmt: skip
                keep_record(work, key, record)
                shutil.rmtree(work / "loops" / key, ignore_errors=True)
            found.append(record)
    return found


def _carry_out(name: str, setting: Setting, work: Path) -> tuple[bool, list[str]]:
    from benchmarks.selftraining import parameters_of

    data = ensure_data(setting.task, work)
    parameters = parameters_of(setting, data, work / "loops" / f"control-{name}-{setting.name}")
    parameters = parameters.model_copy(update={"rounds": 1})  # what is refused has no second one
    if name == "shuffled":
        return verdict_on(parameters, changed_steps({": select": shuffled}))
    if name == "poisoned":
        return verdict_on(parameters, changed_steps({"divide data": poisoned}))
    if name == "copies":
        labelled = Path(parameters.labelled)
        images = [image["file_name"] for image in json.loads(labelled.read_text())["images"]]
        copies = write_copies(labelled, images, work / "data" / f"{setting.task}-copies")
        return verdict_on(parameters.model_copy(update={"unlabelled": str(copies)}))
    flipped = write_on_their_heads(truth_of(data, "pool"), 1_200, work / "data" / f"{setting.task}-other-domain")
    changes = {"unlabelled": str(flipped.parent / "images"), "audit": str(flipped)}
    return verdict_on(parameters.model_copy(update=changes))
