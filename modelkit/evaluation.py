"""COCO average precision of a predictor on digitscape, computed by pycocotools.

The published difficulty is ``Digitscape(split, (160, 160), seed)`` with the default style; the shipped model's
record and its tests use it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.digitscape import CLASS_NAMES, Digitscape
from modelkit.digitscape.coco import coco_annotations, coco_categories, coco_image
from modelkit.types import Instances

Predict = Callable[[list[np.ndarray]], Sequence[Instances]]
"""RGB uint8 HWC arrays in, instances in source pixels out; every ``Predictor`` is one."""

_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision of one kind ("mask" or "box"); -1 where nothing of that kind exists, as pycocotools has it.

    Args:
        ap: mean over IoU .50:.05:.95 and classes.
        ap50, ap75: at one IoU.
        ap_small, ap_medium, ap_large: by mask area below 32**2, below 96**2, above.
        by_class: ap per class name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    by_class: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mask and box precision over a number of scenes."""

    mask: Precision
    box: Precision
    num_scenes: int
    num_objects: int


def evaluate_digitscape(
    predict: Predict, source: Digitscape, num_scenes: int, *, first: int = 0, batch_size: int = 8
) -> Evaluation:
    """Run a predictor over scenes ``first .. first + num_scenes`` and let pycocotools judge it.

    Args:
        predict: what to judge.
        source: split, size, seed and style of the scenes.
        num_scenes: at least 1.
        first: index of the first scene.
        batch_size: images per call of ``predict``.
    """
    if num_scenes < 1:
        raise ValueError(f"num_scenes must be at least 1, got {num_scenes}")
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": coco_categories(), "info": {}}
    found: list[dict[str, Any]] = []
    for start in range(first, first + num_scenes, batch_size):
        scenes = [source.scene(k) for k in range(start, min(start + batch_size, first + num_scenes))]
        for offset, (scene, instances) in enumerate(
            zip(scenes, predict([scene.image_rgb for scene in scenes]), strict=True)
        ):
            image_id = start + offset + 1
            truth["images"].append(coco_image(image_id, scene, f"{image_id}.png"))
            truth["annotations"] += coco_annotations(image_id, scene, len(truth["annotations"]) + 1)
            found += coco_results(image_id, instances)
    mask, box = (_precision(truth, found, kind) for kind in ("segm", "bbox"))
    return Evaluation(mask, box, num_scenes, len(truth["annotations"]))


def coco_results(image_id: int, instances: Instances) -> list[dict[str, Any]]:
    """COCO's result entries of one image; without masks there is only a box."""
    results = []
    for k in range(len(instances)):
        x0, y0, x1, y1 = (float(value) for value in instances.boxes_xyxy[k])
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": int(instances.labels[k]),
            "score": float(instances.scores[k]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        if instances.rles is not None:
            entry["segmentation"] = {"size": list(instances.size_hw), "counts": instances.rles[k]}
        results.append(entry)
    return results


def _precision(truth: dict[str, Any], found: list[dict[str, Any]], kind: Literal["segm", "bbox"]) -> Precision:
    """Score one kind; areas by size always refer to masks, whatever is matched."""
    with _silence():
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        # loadRes derives areas from boxes when there are any, which would shift the size classes of masks
        entries = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in found]
        entries = [entry for entry in entries if kind == "bbox" or "segmentation" in entry]
        if not entries:
            none = -1.0 if not truth["annotations"] else 0.0
            return Precision(none, none, none, none, none, none, dict.fromkeys(CLASS_NAMES, none))
        if kind == "bbox":
            entries = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in entries]
        evaluator = COCOeval(dataset, dataset.loadRes(entries), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    values = dict(zip(_STATS, (float(v) for v in evaluator.stats[:6]), strict=True))
    by_iou = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class, all areas, most detections
    by_class = {}
    for k, name in enumerate(CLASS_NAMES):
        reached = by_iou[:, :, k][by_iou[:, :, k] > -1]
        by_class[name] = float(reached.mean()) if reached.size else -1.0
    return Precision(**values, by_class=by_class)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints tables to stdout, which belongs to machine-readable output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
