"""Average precision of objects with keypoints, as COCO defines it: matched by OKS instead of IoU.

pycocotools computes it, with the deviations of the keypoints at hand instead of those of COCO's people.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.carriers.landmarks import ABSENT, Landmarks

_STATS = ("ap", "ap50", "ap75", "ap_medium", "ap_large")


@dataclass(frozen=True, slots=True)
class OksPrecision:
    """Average precision by OKS; -1 where there is no such truth, as pycocotools has it.

    Args:
        ap: mean over OKS .50:.05:.95 and classes, the 20 best objects of an image.
        ap50, ap75: at one OKS.
        ap_medium, ap_large: by the area that the truth states, 32**2 to 96**2, above.
        by_class: ap per class name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_medium: float
    ap_large: float
    by_class: dict[str, float]


def oks_results(image_id: int, found: Landmarks) -> list[dict[str, Any]]:
    """COCO's result entries of one image, keypoints in the pixels of our carriers; absent ones lie at (0, 0), v = 0."""
    is_there = found.visibility > ABSENT
    places = np.where(is_there[..., None], found.keypoints_xy, 0.0)
    triples = np.concatenate([places, found.visibility[..., None]], axis=2).astype(np.float64)
    return [
        {
            "image_id": image_id,
            "category_id": int(found.labels[k]),
            "score": float(found.scores[k]),
            "keypoints": triples[k].ravel().tolist(),
        }
        for k in range(len(found))
    ]


def oks_evaluator(truth: dict[str, Any], found: Sequence[dict[str, Any]], sigmas: Sequence[float]) -> COCOeval | None:
    """pycocotools' evaluator after ``evaluate()``; None when nothing was found.

    Objects of which no keypoint is labelled (``num_keypoints`` 0) and crowds count neither way.

    Args:
        truth: ``images, annotations, categories`` as in COCO's files; keypoints and those found in the same pixels.
        found: see :func:`oks_results`.
        sigmas: of the K keypoints, see ``KeypointSet``.
    """
    if not found:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        dataset = COCO()
        dataset.dataset = truth | {"annotations": [dict(each) for each in truth["annotations"]]}
        dataset.createIndex()
        evaluator = COCOeval(dataset, dataset.loadRes([dict(each) for each in found]), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluator.evaluate()
        return evaluator


def oks_precision(evaluator: COCOeval | None, truth: dict[str, Any]) -> OksPrecision:
    """Average precision of :func:`oks_evaluator`'s matches."""
    names = [each["name"] for each in sorted(truth["categories"], key=lambda each: int(each["id"]))]
    if evaluator is None:
        counted = any(each.get("num_keypoints") and not each.get("iscrowd") for each in truth["annotations"])
        none = 0.0 if counted else -1.0
        return OksPrecision(none, none, none, none, none, dict.fromkeys(names, none))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
        evaluator.summarize()
    values = dict(zip(_STATS, (float(value) for value in evaluator.stats[:5]), strict=True))
    by_oks = evaluator.eval["precision"][:, :, :, 0, -1]  # OKS x recall x class, all areas, most objects
    by_class = {}
    for k, name in enumerate(names):
        reached = by_oks[:, :, k][by_oks[:, :, k] > -1]
        by_class[name] = float(reached.mean()) if reached.size else -1.0
    return OksPrecision(**values, by_class=by_class)
