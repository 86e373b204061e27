"""Average precision as COCO defines it, on any truth in COCO's form.

Figures are computed by faster-coco-eval, whose numbers are pycocotools' own (the tests hold them against each other);
pycocotools itself gives the matches of single images, which the bootstrap needs and faster-coco-eval does not show.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import faster_coco_eval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.carriers import Instances

Kind = Literal["segm", "bbox"]
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision of one kind ("mask" or "box"); -1 where nothing of that kind exists, as pycocotools has it.

    Args:
        ap: mean over IoU .50:.05:.95 and classes.
        ap50, ap75: at one IoU.
        ap_small, ap_medium, ap_large: by the area that the truth states, below 32**2, below 96**2, above.
        by_class: ap per class name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    by_class: dict[str, float]


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


def coco_evaluator(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: Kind, configure: Callable[[Any], None] | None = None
) -> COCOeval | None:
    """pycocotools' evaluator after ``evaluate()``, images and classes by ascending id; None when nothing was found.

    Areas by size always refer to what the truth says, whatever is matched.

    Args:
        truth: ``images, annotations, categories`` as in COCO's files.
        found: result entries, see :func:`coco_results`.
        kind: masks or boxes.
        configure: changes the evaluator's parameters before it matches.
    """
    entries = _entries(found, kind)
    return _evaluated(COCO, COCOeval, truth, entries, kind, configure) if entries else None


def _entries(found: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """loadRes derives areas from boxes when there are any, which would shift the size classes of masks."""
    other, needed = ("bbox", "segmentation") if kind == "segm" else ("segmentation", "bbox")
    return [{k: v for k, v in entry.items() if k != other} for entry in found if needed in entry]


def _evaluated(
    coco: Any,
    evaluation: Any,
    truth: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    kind: Kind,
    configure: Callable[[Any], None] | None = None,
) -> Any:
    """An evaluator of either library after ``evaluate()``; neither may change the caller's truth."""
    with _silence():
        dataset = coco()
        dataset.dataset = truth | {"annotations": [dict(each) for each in truth["annotations"]]}
        dataset.createIndex()
        evaluator = evaluation(dataset, dataset.loadRes(entries), kind)
        if configure is not None:
            configure(evaluator.params)
        evaluator.evaluate()
        return evaluator


def precision_of(truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: Kind) -> Precision:
    """Score one kind.

    Args:
        truth: ``images, annotations, categories`` as in COCO's files; ``area`` decides about sizes.
        found: result entries, see :func:`coco_results`.
        kind: masks or boxes.
    """
    names = [category["name"] for category in sorted(truth["categories"], key=lambda category: int(category["id"]))]
    entries = _entries(found, kind)
    if not entries:
        none = -1.0 if not truth["annotations"] else 0.0
        return Precision(none, none, none, none, none, none, dict.fromkeys(names, none))
    evaluator = _evaluated(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, truth, entries, kind)
    with _silence():
        evaluator.accumulate()
        evaluator.summarize()
    values = dict(zip(_STATS, (float(v) for v in evaluator.stats[:6]), strict=True))
    by_iou = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class, all areas, most detections
    by_class = {}
    for k, name in enumerate(names):
        reached = by_iou[:, :, k][by_iou[:, :, k] > -1]
        by_class[name] = float(reached.mean()) if reached.size else -1.0
    return Precision(**values, by_class=by_class)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints tables to stdout, which belongs to machine-readable output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
