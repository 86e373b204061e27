"""Average precision by OKS beside another implementation of COCO's rules, on random objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelkit.carriers.landmarks import Landmarks
from modelkit.metrics import object_keypoint_similarity, oks_evaluator, oks_precision, oks_results

SIGMAS = (0.05, 0.1, 0.2)
NAMES = ("cat", "dog")


def found_in(random: np.random.Generator, true: np.ndarray, labels: np.ndarray, extra: int) -> Landmarks:
    """What a middling model makes of (n, 3, 3) true keypoints: shifted, some missing, some made up."""
    kept = np.concatenate([np.flatnonzero(random.random(len(true)) < 0.8), random.integers(0, len(true), extra)])
    places = (true[kept, :, :2] + random.normal(0, 5, (len(kept), 3, 2))).astype(np.float32)
    n = len(kept)
    return Landmarks(
        (200, 200), np.tile(np.float32([0, 0, 9, 9]), (n, 1)), random.random(n, np.float32),
        labels[kept].astype(np.int32), places, np.ones((n, 3), np.float32), np.full((n, 3), 2, np.uint8),
    )  # fmt: skip


def data(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images with up to eight objects of two classes, some without a labelled keypoint, some crowds."""
    random, truth, found = np.random.default_rng(seed), [], []
    for image in range(1, 7):
        n = int(random.integers(1, 9))
        true = np.concatenate([random.uniform(10, 190, (n, 3, 2)), random.integers(0, 3, (n, 3, 1))], 2)
        labels = random.integers(1, 3, n)
        sides = random.uniform(20, 110, (n, 2))
        truth += [
            {
                "id": len(truth) + k + 1, "image_id": image, "category_id": int(labels[k]), "iscrowd": int(k == 5),
                "keypoints": true[k].ravel().tolist(), "num_keypoints": int((true[k, :, 2] > 0).sum()),
                "area": float(sides[k].prod()), "bbox": [*true[k, 0, :2].tolist(), *sides[k].tolist()],
            }
            for k in range(n)
        ]  # fmt: skip
        found += oks_results(image, found_in(random, true, labels, int(random.integers(0, 4))))
    images = [{"id": k, "height": 200, "width": 200} for k in range(1, 7)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    return {"images": images, "annotations": truth, "categories": categories}, found


def by_rules(truth: dict[str, Any], found: list[dict[str, Any]], label: int, low: float, high: float) -> float:
    """COCO's AP of one class and range of areas, image by image and threshold by threshold; -1 without truth."""
    values = []
    for threshold in np.linspace(0.5, 0.95, 10):
        hits, total = [], 0
        for image in truth["images"]:
            mine = [a for a in truth["annotations"] if a["image_id"] == image["id"] and a["category_id"] == label]
            theirs = [f for f in found if f["image_id"] == image["id"] and f["category_id"] == label]
            hits += matched(mine, sorted(theirs, key=lambda f: -f["score"])[:20], threshold, low, high)
            total += sum(counts(a, low, high) for a in mine)
        if not total:
            return -1.0
        hits.sort(key=lambda hit: -hit[0])
        right = np.cumsum([hit for _, hit in hits])
        precision = right / np.arange(1, len(hits) + 1)
        best = [max((p for p, r in zip(precision, right / total, strict=True) if r >= recall), default=0.0)
                for recall in np.linspace(0, 1, 101)]  # fmt: skip
        values.append(np.mean(best))
    return float(np.mean(values))


def counts(annotation: dict[str, Any], low: float, high: float) -> bool:
    is_known = annotation["num_keypoints"] > 0 and not annotation["iscrowd"]
    return bool(is_known and low <= annotation["area"] <= high)


def matched(
    mine: list[dict[str, Any]], theirs: list[dict[str, Any]], threshold: float, low: float, high: float
) -> list[tuple[float, bool]]:
    """(score, right) of the finds that count: each takes the most similar object left, those that count first."""
    mine = sorted(mine, key=lambda a: not counts(a, low, high))
    oks = similarity(theirs, mine)
    taken: set[int] = set()
    hits = []
    for f, each in enumerate(theirs):
        best, at = min(threshold, 1 - 1e-10), -1
        for m, annotation in enumerate(mine):
            if m in taken and not annotation["iscrowd"]:
                continue
            if at >= 0 and counts(mine[at], low, high) and not counts(annotation, low, high):
                break
            if oks[f, m] >= best:
                best, at = oks[f, m], m
        taken |= {at} - {-1}
        xs, ys = np.reshape(each["keypoints"], (-1, 3)).T[:2]
        size = (xs.max() - xs.min()) * (ys.max() - ys.min())
        if counts(mine[at], low, high) if at >= 0 else low <= size <= high:
            hits.append((each["score"], at >= 0))
    return hits


def similarity(theirs: list[dict[str, Any]], mine: list[dict[str, Any]]) -> np.ndarray:
    true = np.reshape([a["keypoints"] for a in mine], (-1, 3, 3))
    boxes = np.reshape([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)], (-1, 4))
    found = np.reshape([f["keypoints"] for f in theirs], (-1, 3, 3))
    return object_keypoint_similarity(found, true, np.array([a["area"] for a in mine]), boxes, SIGMAS)


@pytest.mark.parametrize("seed", range(4))
def test_precision_by_oks_equals_cocos_rules_written_down_again(seed: int) -> None:
    truth, found = data(seed)
    precision = oks_precision(oks_evaluator(truth, found, SIGMAS), truth)
    for name, low, high in (("ap", 0, 1e10), ("ap_medium", 32**2, 96**2), ("ap_large", 96**2, 1e10)):
        by_class = [by_rules(truth, found, label, low, high) for label in (1, 2)]
        known = [each for each in by_class if each >= 0]
        assert getattr(precision, name) == pytest.approx(np.mean(known) if known else -1.0), name
        if name == "ap":
            assert list(precision.by_class.values()) == pytest.approx(by_class)
    assert 0.1 < precision.ap < 0.9


def test_nothing_found_is_no_precision_and_nothing_to_find_is_no_figure() -> None:
    truth, _ = data(0)
    assert oks_precision(oks_evaluator(truth, [], SIGMAS), truth).ap == 0.0
    bare = truth | {"annotations": [each | {"num_keypoints": 0} for each in truth["annotations"]]}
    assert oks_precision(oks_evaluator(bare, [], SIGMAS), bare).by_class == {"cat": -1.0, "dog": -1.0}
