"""A model against a label set: average precision by class and size, mean IoU or panoptic quality, as its task has them.

The test score floor is fixed and low: raising it alone costs a point of AP and more, so figures with other floors do
not compare. At most 100 detections an image; areas are those of masks; crowds count neither way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

import modelkit
from infra.errors import DatasetError, UsageError
from modelkit import Instances, Predictor, rle
from modelkit.metrics import PanopticQuality, SemanticQuality, panoptic_array
from modelkit.metrics.panoptic import DIVISOR
from modelkit.metrics.precision import Kind, coco_evaluator, coco_results, precision_of
from tasks.engine.model_source import local_model
from tasks.evaluation.kinds import main_figure
from tasks.labels.label_sets import LabelSet
from tasks.media.decoding import DecodeOptions, decode_entry
from tasks.media.reading import EntryReader
from tasks.output.entries import MISSING_ETAG
from tasks.records import Entry

SCORE_FLOOR = 1e-3
IGNORE = 255
_BATCH = 8

Row = Mapping[str, Any]
"""One row of ``labels.v1``."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of a model on a label set.

    Args:
        task: of the model.
        metrics: plain JSON by kind, see ``tasks.evaluation.kinds``.
        image_ids: of the label set, in the order of what follows.
        class_names: likewise.
        evaluator: pycocotools' own for the main kind (masks where there are any), after ``evaluate()``; None for maps.
        confusion: (images, classes, classes) pixels, rows truth and columns prediction; None but for semantic maps.
        num_objects: of the label set.
        segments: (images, classes, 4) of ``PanopticQuality.counts``; None but for panoptic maps.
    """

    task: str
    metrics: dict[str, Any]
    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    evaluator: COCOeval | None
    confusion: np.ndarray | None
    num_objects: int
    segments: np.ndarray | None = None

    @property
    def main_metric(self) -> float:
        """Panoptic quality, mean IoU, mask AP, or box AP where there are no masks."""
        found = main_figure(self.metrics)
        assert found is not None, "every judge has a main figure"
        return found

    def to_json(self) -> dict[str, Any]:
        """What is reported."""
        return {
            "task": self.task,
            "images": len(self.image_ids),
            "objects": self.num_objects,
            "score_floor": SCORE_FLOOR,
            **self.metrics,
        }


def evaluate_model(model: str, labels: LabelSet, *, weights: str | None = None, device: str = "cpu") -> Judged:
    """Run a model over the images of a label set and judge what it finds.

    Args:
        model, weights: as ``modelkit.load`` takes them, or URIs.
        labels: with classes of the model's ids and names.

    Raises:
        UsageError: an unknown model, or one of a task that is not judged here.
        DatasetError: an image that cannot be read, classes that are not the model's.
    """
    try:
        predictor = modelkit.load(
            local_model(model), weights=None if weights is None else local_model(weights), device=device
        )
    except modelkit.ModelkitError as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models and their weights") from error
    return evaluate_predictor(predictor, labels)


def evaluate_predictor(predictor: Predictor, labels: LabelSet) -> Judged:
    """The same with a predictor that is loaded already."""
    _check_classes(predictor, labels)
    rows: list[Row] = labels.table.to_pylist()
    judge = _JUDGES.get(predictor.weights.task)
    if judge is None:
        raise UsageError(f"models that do {predictor.weights.task} are not judged by this command")
    return judge(predictor, labels, rows)


def _check_classes(predictor: Predictor, labels: LabelSet) -> None:
    """A class map that differs in a name relabels silently, so it is refused."""
    known = predictor.weights.class_names()
    wrong = [
        f"{each.id} is {known.get(each.id, 'unknown')!r} to the model and {each.name!r} in the labels"
        for each in labels.classes
        if known.get(each.id) != each.name
    ]
    if wrong:
        raise DatasetError(f"the classes are not those of {predictor.weights.name}: {'; '.join(wrong[:5])}")


def _judge_objects(predictor: Predictor, labels: LabelSet, rows: Sequence[Row]) -> Judged:
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": each.id, "name": each.name} for each in labels.classes],
    }
    found: list[dict[str, Any]] = []
    for number, (row, instances) in enumerate(predictions(predictor, rows), start=1):
        truth["images"].append({"id": number, "height": row["height"], "width": row["width"]})
        truth["annotations"] += _annotations(number, row, len(truth["annotations"]) + 1)
        found += coco_results(number, instances)
    has_masks = predictor.weights.task == "instance" and all("segmentation" in each for each in truth["annotations"])
    kinds: dict[str, Kind] = {"mask": "segm", "box": "bbox"} if has_masks else {"box": "bbox"}
    metrics = {name: asdict(precision_of(truth, found, kind)) for name, kind in kinds.items()}
    return Judged(
        task=predictor.weights.task,
        metrics=metrics,
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in labels.classes),
        evaluator=coco_evaluator(truth, found or [_nothing(truth)], next(iter(kinds.values()))),
        confusion=None,
        num_objects=len(truth["annotations"]),
    )


def _nothing(truth: dict[str, Any]) -> dict[str, Any]:
    """A find of no area and no score, so that pycocotools has something to count where a model found nothing at all."""
    image = truth["images"][0]
    empty = rle.encode(np.zeros((image["height"], image["width"]), np.uint8))
    return {
        "image_id": image["id"],
        "category_id": truth["categories"][0]["id"],
        "score": 0.0,
        "bbox": [0.0, 0.0, 0.0, 0.0],
        "segmentation": {"size": [image["height"], image["width"]], "counts": empty},
    }


def _annotations(image_id: int, row: Row, first_id: int) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    columns = ("labels", "boxes_xyxy", "areas", "rles", "is_crowd")
    for label, (x0, y0, x1, y1), area, mask, crowd in zip(*(row[name] for name in columns), strict=True):
        annotation = {
            "id": first_id + len(annotations),
            "image_id": image_id,
            "category_id": label,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd),
        }
        if mask is not None:
            annotation["segmentation"] = {"size": [row["height"], row["width"]], "counts": mask}
        annotations.append(annotation)
    return annotations


def _judge_maps(predictor: Predictor, labels: LabelSet, rows: Sequence[Row]) -> Judged:
    """Mean IoU; pixels that nobody labelled are ignored, and are background where the model has one."""
    background = getattr(predictor.model, "background", None)
    num_classes = max(2, int(predictor.model.config["num_classes"]))  # one class is told from the background
    names = predictor.weights.class_names()
    per_image, objects = [], 0
    total = SemanticQuality(num_classes)
    for row, instances in predictions(predictor, rows):
        quality = SemanticQuality(num_classes)
        truth = label_map(row["labels"], row["rles"], (row["height"], row["width"]), background)
        if row["void_rle"] is not None:
            truth[rle.decode(row["void_rle"], truth.shape).astype(bool)] = IGNORE
        assert instances.rles is not None  # semantic models always have maps
        predicted = label_map(instances.labels.tolist(), instances.rles, instances.size_hw, background or 0)
        quality.add(truth, predicted)
        total.confusion += quality.confusion
        per_image.append(quality.confusion)
        objects += len(row["labels"])
    scores = total.scores()
    present = [names.get(k, "background" if k == background else f"class {k}") for k in range(num_classes)]
    metrics = {
        "semantic": {
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            "by_class": {present[k]: value for k, value in scores.by_class.items()},
        }
    }
    return Judged(
        task=predictor.weights.task,
        metrics=metrics,
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(present),
        evaluator=None,
        confusion=np.stack(per_image),
        num_objects=objects,
    )


def _judge_segments(predictor: Predictor, labels: LabelSet, rows: Sequence[Row]) -> Judged:
    """Panoptic quality; pixels of no segment, void ones and those of crowds are unlabelled."""
    classes = predictor.weights.classes
    things = {each.id for each in classes if each.is_thing}
    place = {each.id: k for k, each in enumerate(classes)}
    total, objects = PanopticQuality(things), 0
    segments = np.zeros((len(rows), len(place), 4))
    for image, (row, found) in enumerate(predictions(predictor, rows)):
        truth, answer = _panoptic_truth(row, things), panoptic_array(found)
        one = PanopticQuality(things)
        for quality in (one, total):
            quality.add(truth, answer)
        for label, counts in one.counts().items():
            segments[image, place[label]] = counts
        objects += len(row["labels"])
    scores = total.scores()
    names = predictor.weights.class_names()
    metrics = {
        "panoptic": {
            "pq": scores.all.pq,
            "sq": scores.all.sq,
            "rq": scores.all.rq,
            "pq_things": scores.things.pq,
            "pq_stuff": scores.stuff.pq,
            "by_class": {names[k]: quality.pq for k, quality in scores.by_class.items()},
        }
    }
    return Judged(
        task=predictor.weights.task,
        metrics=metrics,
        image_ids=tuple(row["image_id"] for row in rows),
        class_names=tuple(each.name for each in classes),
        evaluator=None,
        confusion=None,
        num_objects=objects,
        segments=segments,
    )


def _panoptic_truth(row: Row, things: Collection[int]) -> np.ndarray:
    """(H, W) panoptic array of a labelled item; the first object has a pixel that two claim."""
    size_hw = (row["height"], row["width"])
    array = np.zeros(size_hw, np.int64)
    unlabelled = np.zeros(size_hw, bool)
    columns = zip(row["labels"], row["rles"], row["is_crowd"], strict=True)
    for number, (label, mask, crowd) in enumerate(columns, start=1):
        if mask is None:
            raise DatasetError(f"{row['image_id']} has an object without a mask: no panoptic truth")
        pixels = rle.decode(mask, size_hw).astype(bool)
        if crowd:
            unlabelled |= pixels
        else:
            array[pixels & (array == 0)] = label * DIVISOR + (number if label in things else 0)
    if row["void_rle"] is not None:
        unlabelled |= rle.decode(row["void_rle"], size_hw).astype(bool)
    array[unlabelled] = 0
    return array


_JUDGES: dict[str, Callable[[Predictor, LabelSet, Sequence[Row]], Judged]] = {
    "instance": _judge_objects,
    "detection": _judge_objects,
    "semantic": _judge_maps,
    "panoptic": _judge_segments,
}


def label_map(
    labels: Sequence[int], rles: Sequence[bytes | None], size_hw: tuple[int, int], background: int | None
) -> np.ndarray:
    """(H, W) int64: classes painted one over the other; elsewhere the background, or 255 where there is none."""
    painted = np.full(size_hw, IGNORE if background is None else background, np.int64)
    for label, mask in zip(labels, rles, strict=True):
        if mask is not None:
            painted[rle.decode(mask, size_hw).astype(bool)] = label
    return painted


def predictions(
    predictor: Predictor, rows: Sequence[Row], *, floor: float = SCORE_FLOOR
) -> Iterator[tuple[Row, Instances]]:
    """Every row with what the model finds in its image from a score on, in order.

    Raises:
        DatasetError: an image that cannot be read or is not of the size its labels are for.
    """
    reader = EntryReader()
    for start in range(0, len(rows), _BATCH):
        chosen = rows[start : start + _BATCH]
        images = [pixels_of(row, reader) for row in chosen]
        yield from zip(chosen, (_floored(found, floor) for found in predictor(images)), strict=True)


def _floored(instances: Instances, floor: float) -> Instances:
    keep = np.flatnonzero(instances.scores >= floor)
    return instances if len(keep) == len(instances) else instances.chosen(keep)


def pixels_of(row: Row, reader: EntryReader) -> np.ndarray:
    """(H, W, 3) uint8 of a labelled item."""
    entry = Entry(row["uri"], MISSING_ETAG, 0, row["media"])
    if row["media"] == "video":
        entry = Entry(row["uri"], MISSING_ETAG, 0, "video", first_frame=0, end_frame=row["frame"] + 1)
    why = "there is no such frame"
    for frame in decode_entry(entry, reader, DecodeOptions()):
        if frame.failure is not None:
            why = frame.failure.error
        elif frame.frame == row["frame"]:
            if frame.size_hw != (row["height"], row["width"]):
                raise DatasetError(
                    f"{row['image_id']} is {frame.size_hw}, its labels are for {(row['height'], row['width'])}",
                    hint="Was the image replaced, or are the labels those of another one?",
                )
            assert frame.image_rgb_hwc_u8 is not None  # it did not fail
            return frame.image_rgb_hwc_u8
    raise DatasetError(f"{row['image_id']} cannot be judged: {why}", hint="Leave it out, or mend it.")
