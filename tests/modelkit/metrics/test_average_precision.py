"""Average precision on random data is pycocotools' own, to the last digit: boxes, masks, crowds, ties, stated areas."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.metrics.precision import Kind, precision_of

HEIGHT, WIDTH = 120, 150


def ellipse(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    (cy, cx), (ry, rx) = rng.uniform(10, 110, 2), rng.uniform(3, 40, 2)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)


def shape(mask: np.ndarray, rng: np.random.Generator, jitter: float) -> dict[str, Any]:
    counts = coco_mask.encode(np.asfortranarray(mask))
    x, y, width, height = (float(value + jitter * rng.normal()) for value in coco_mask.toBbox(counts))
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts["counts"]},
            "bbox": [x, y, abs(width), abs(height)]}  # fmt: skip


def random_data(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth whose boxes and areas are not those of the masks, and finds that share scores; class 9 is found only."""
    rng = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, 31):
        for _ in range(rng.integers(0, 7)):
            mask, label = ellipse(rng), int(rng.choice([1, 4, 7]))
            area = float(mask.sum() * rng.uniform(0.3, 2))
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": label, "area": area,
                          "iscrowd": int(rng.random() < 0.2), **shape(mask, rng, 1.5)})  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                moved = np.roll(mask, rng.integers(-5, 6, 2), axis=(0, 1))
                found.append({"image_id": image, "category_id": label if rng.random() < 0.8 else 9,
                              "score": round(float(rng.random()), 1), **shape(moved, rng, 0.5)})  # fmt: skip
    crowded = shape(ellipse(rng), rng, 0)  # more than 100 finds in one image
    found += [{"image_id": 1, "category_id": 1, "score": k / 150, **crowded} for k in range(150)]
    images = [{"id": k, "height": HEIGHT, "width": WIDTH} for k in range(1, 31)]
    categories = [{"id": label, "name": f"class {label}"} for label in (1, 4, 7, 9)]
    return {"info": {}, "images": images, "annotations": truth, "categories": categories}, found


def by_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], kind: Kind) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = copy.deepcopy(truth)
        dataset.createIndex()
        other = "bbox" if kind == "segm" else "segmentation"
        entries = [{key: value for key, value in each.items() if key != other} for each in found]
        evaluator = COCOeval(dataset, dataset.loadRes(entries), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats[:6]]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_are_those_of_pycocotools(seed: int, kind: Kind) -> None:
    truth, found = random_data(seed)
    before = copy.deepcopy((truth, found))
    ours = precision_of(truth, found, kind)
    figures = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large]
    assert figures == pytest.approx(by_pycocotools(truth, found, kind), abs=1e-12)
    assert ours.by_class["class 9"] == -1 and 0 < ours.ap < 1
    assert (truth, found) == before  # a caller may use them again
