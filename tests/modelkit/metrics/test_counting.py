"""Accuracy of counts: equal to matching by hand, and to what the words say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelkit.metrics import accuracy_of


def an_entry(image: int, label: int, box: tuple[float, float, float, float], **more: Any) -> dict[str, Any]:
    x, y, width, height = box
    return {"image_id": image, "category_id": label, "bbox": [x, y, width, height], "area": width * height, **more}


def truth_of(objects: list[dict[str, Any]], images: int = 3) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": k + 1, "height": 100, "width": 100} for k in range(images)],
        "annotations": [{"iscrowd": 0, **each, "id": k + 1} for k, each in enumerate(objects)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def iou(a: list[float], b: list[float]) -> float:
    across = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return across * down / (a[2] * a[3] + b[2] * b[3] - across * down)


def by_hand(
    objects: list[dict[str, Any]], found: list[dict[str, Any]], at: float, score: float
) -> tuple[int, int, int]:
    """TP, FP and FN: each find, the surest first, takes the free object of its class that it overlaps most."""
    free, right, wrong = list(objects), 0, 0
    for find in sorted((each for each in found if each["score"] >= score), key=lambda each: -each["score"]):
        same = [each for each in free if all(each[key] == find[key] for key in ("image_id", "category_id"))]
        best = max(same, key=lambda each: iou(find["bbox"], each["bbox"]), default=None)
        if best is not None and iou(find["bbox"], best["bbox"]) >= at:
            free.remove(best)
            right += 1
        else:
            wrong += 1
    return right, wrong, len(objects) - right


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_matching_by_hand_at_every_score(seed: int) -> None:
    draws = np.random.default_rng(seed)

    def boxes(count: int) -> list[dict[str, Any]]:
        places = [(*draws.integers(0, 40, 2), *draws.integers(20, 50, 2)) for _ in range(count)]
        return [an_entry(int(draws.integers(1, 4)), int(draws.integers(1, 3)), place) for place in places]

    objects = boxes(30)
    found = [each | {"score": float(score)} for each, score in zip(boxes(60), draws.random(60).round(2), strict=True)]
    scores = sorted({each["score"] for each in found} | {1.0})
    shares = {}
    for score in scores:
        got = accuracy_of(truth_of(objects), found, "bbox", score)
        right, wrong, missed = by_hand(objects, found, 0.5, score)
        assert (got.right, got.made_up, got.missed) == (right, wrong, missed)
        shares[score] = right / (right + wrong + missed)
        assert got.accuracy50 == pytest.approx(shares[score])
        right, wrong, missed = by_hand(objects, found, 0.75, score)
        assert got.accuracy75 == pytest.approx(right / (right + wrong + missed))
    assert got.best50 == pytest.approx(max(shares.values()))
    assert shares[got.best_score] == pytest.approx(got.best50)


def test_more_than_a_hundred_finds_in_an_image_all_count() -> None:
    objects = [an_entry(1, 1, (float(k % 20) * 5, float(k // 20) * 5, 4.0, 4.0)) for k in range(160)]
    counted = accuracy_of(truth_of(objects), [each | {"score": 0.9} for each in objects], "bbox")
    assert (counted.accuracy50, counted.right, counted.best_score) == (1.0, 160, 0.9)


def test_finds_in_crowds_count_neither_way() -> None:
    objects = [an_entry(1, 1, (0.0, 0.0, 50.0, 50.0), iscrowd=1), an_entry(1, 1, (60.0, 60.0, 20.0, 20.0))]
    found = [an_entry(1, 1, box, score=0.8) for box in ((60.0, 60.0, 20.0, 20.0), (5.0, 5.0, 10.0, 10.0))]
    assert accuracy_of(truth_of(objects), found, "bbox").accuracy50 == 1.0


def test_nothing_found_of_nothing_is_all_right_and_of_something_all_wrong() -> None:
    assert accuracy_of(truth_of([]), [], "bbox").accuracy50 == 1.0
    missed = accuracy_of(truth_of([an_entry(1, 1, (0.0, 0.0, 9.0, 9.0))]), [], "bbox")
    assert (missed.accuracy50, missed.best50, missed.best_score, missed.missed) == (0.0, 0.0, 1.0, 1)
    made_up = accuracy_of(truth_of([]), [an_entry(1, 1, (0.0, 0.0, 9.0, 9.0), score=0.9)], "bbox")
    assert (made_up.accuracy50, made_up.made_up, made_up.best50, made_up.best_score) == (0.0, 1, 1.0, 1.0)
