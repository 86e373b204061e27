"""The paired bootstrap is pycocotools' own arithmetic on repeated images, and it does not promote noise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.metrics import PanopticQuality
from modelkit.metrics.panoptic import DIVISOR
from tasks.evaluation.average_precision import AveragePrecision
from tasks.evaluation.bootstrap import compare, group_weights, intervals_of
from tasks.product import Judgement, Resampled
from tasks.products.segments.panoptic import mean_panoptic_quality
from tasks.products.segments.semantic import mean_iou

CLASSES = ("disc", "box", "star")
IMAGES = 24


def dataset(seed: int = 0, images: int = IMAGES) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of all sizes, and predictions that are shifted copies, inventions and losses."""
    rng = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            side = float(rng.choice([12.0, 50.0, 120.0]))
            x, y = rng.uniform(0, 200, 2)
            label = int(rng.choice([1, 1, 1, 2, 2, 3]))
            truth.append(
                {"id": len(truth) + 1, "image_id": image, "category_id": label, "bbox": [x, y, side, side],
                 "area": side**2, "iscrowd": int(rng.random() < 0.05)}
            )  # fmt: skip
            if rng.random() < 0.8:
                moved = [x + rng.normal(0, side / 12), y + rng.normal(0, side / 12), side, side]
                found.append({"image_id": image, "category_id": label, "bbox": moved, "score": float(rng.random())})
        if rng.random() < 0.5:
            box = [*rng.uniform(0, 200, 2), 40.0, 40.0]
            found.append(
                {"image_id": image, "category_id": int(rng.integers(1, 4)), "bbox": box, "score": float(rng.random())}
            )
    content = {
        "images": [{"id": k, "width": 320, "height": 320} for k in range(1, images + 1)],
        "annotations": truth,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
        "info": {},
    }
    return content, found


def evaluated(content: dict[str, Any], found: list[dict[str, Any]]) -> COCOeval:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "bbox")
    evaluator.evaluate()
    return evaluator


def stats(evaluator: COCOeval) -> np.ndarray:
    """AP, and AP of small, medium and large objects."""
    evaluator.accumulate()
    evaluator.summarize()
    return np.asarray(evaluator.stats)[[0, 3, 4, 5]]


def ours(metric: AveragePrecision, weights: np.ndarray) -> np.ndarray:
    values = metric(weights[None])
    return np.nan_to_num(np.concatenate([values.overall, values.by_size[0]]), nan=-1.0)


def test_the_identity_resample_is_the_original_ap(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = evaluated(*dataset())
    found = ours(AveragePrecision(evaluator), np.ones(IMAGES, np.int64))
    assert found == pytest.approx(stats(evaluator), abs=1e-12)
    by_class = AveragePrecision(evaluator)(np.ones((1, IMAGES), np.int64)).by_class[0]
    cell = evaluator.eval["precision"][:, :, :, 0, -1]
    assert by_class == pytest.approx([cell[:, :, k][cell[:, :, k] > -1].mean() for k in range(3)], abs=1e-12)


def test_repeated_images_are_a_physically_repeated_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    content, found = dataset()
    weights = np.random.default_rng(3).integers(0, 4, IMAGES)
    repeated: dict[str, Any] = {**content, "images": [], "annotations": []}
    results = []
    for image in content["images"]:
        for _ in range(weights[image["id"] - 1]):
            new = len(repeated["images"]) + 1
            repeated["images"].append({**image, "id": new})
            for each in (a for a in content["annotations"] if a["image_id"] == image["id"]):
                repeated["annotations"].append({**each, "image_id": new, "id": len(repeated["annotations"]) + 1})
            results += [{**each, "image_id": new} for each in found if each["image_id"] == image["id"]]
    metric = AveragePrecision(evaluated(content, found))
    assert ours(metric, weights) == pytest.approx(stats(evaluated(repeated, results)), abs=1e-12)


def test_every_resample_is_what_pycocotools_accumulates_from_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = evaluated(*dataset(5))
    metric = AveragePrecision(evaluated(*dataset(5)))
    original, areas = list(evaluator.evalImgs), len(evaluator.params.areaRng)
    for weights in group_weights([str(k) for k in range(IMAGES)], seed=1, resamples=5):
        chosen = np.repeat(np.arange(IMAGES), weights)
        evaluator.evalImgs = [
            original[cell * IMAGES + place] for cell in range(len(CLASSES) * areas) for place in chosen
        ]
        for parameters in (evaluator.params, evaluator._paramsEval):
            parameters.imgIds = list(range(len(chosen)))
        assert ours(metric, weights) == pytest.approx(stats(evaluator), abs=1e-12)


def test_classes_without_truth_or_predictions_are_nan_or_zero(capsys: pytest.CaptureFixture[str]) -> None:
    content, found = dataset()
    without = [a for a in content["annotations"] if a["category_id"] != 3]
    resample = AveragePrecision(
        evaluated({**content, "annotations": without}, [f for f in found if f["category_id"] != 2])
    )
    by_class = resample(np.ones((1, IMAGES), np.int64)).by_class[0]
    assert by_class[0] > 0 and by_class[1] == 0 and np.isnan(by_class[2])


def test_groups_are_drawn_whole() -> None:
    groups = [f"video{k // 6}" for k in range(24)]
    weights = group_weights(groups, seed=0, resamples=200)
    assert (weights.reshape(200, 4, 6) == weights.reshape(200, 4, 6)[:, :, :1]).all()
    assert (weights[:, ::6].sum(axis=1) == 4).all()
    alike, better = judged(np.zeros(24)), judged(np.repeat([0.3, -0.1, 0.2, 0.0], 6))
    alone, together = (compare(better, alike, groups=g, seed=0) for g in (None, groups))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def judged(by_image: np.ndarray, resample: Callable[[np.ndarray], Resampled] | None = None) -> Judgement:
    """A judgement whose figure is the mean of one number per image, unless it is resampled otherwise."""

    def mean(weights: np.ndarray) -> Resampled:
        values = (weights * by_image).sum(axis=1) / weights.sum(axis=1)
        return Resampled(values, values[:, None], np.zeros((len(weights), 0)))

    ids = tuple(map(str, range(len(by_image))))
    return Judgement("toy", {"toy": {"mean": float(by_image.mean())}}, ids, ("all",), 0, resample or mean)


def test_students_that_differ_by_chance_are_promoted_no_more_often_than_the_level() -> None:
    """A hundred candidates that are as good as the champion, each luckier or unluckier on every image."""
    rng = np.random.default_rng(12)
    sure = 1 - 0.05 / 3
    promoted = 0
    for k in range(100):
        noise = judged(rng.normal(0, 0.2, 120))
        found = compare(noise, judged(np.zeros(120)), seed=k, resamples=400)
        promoted += found.probability >= sure and found.difference >= 0.003
    assert promoted <= 5
    real = judged(rng.normal(0.08, 0.2, 120))
    assert compare(real, judged(np.zeros(120)), seed=0).probability >= sure


def test_mean_iou_of_resamples() -> None:
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 50, (6, 3, 3))
    confusion[:, 2] = confusion[:, :, 2] = 0  # a class that never occurs
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 3, 0]])
    for values, row in zip(mean_iou(confusion, weights).by_class, weights, strict=True):
        total = (confusion * row[:, None, None]).sum(axis=0)
        expected = [total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(2)]
        assert values[:2] == pytest.approx(expected) and np.isnan(values[2])
    same = judged(np.zeros(6), functools.partial(mean_iou, confusion))
    found = compare(same, same, seed=0)
    assert found.difference == 0.0 and found.probability == 0.0


def test_panoptic_quality_of_resamples_is_that_of_repeated_images() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 4, (6, 8)) * DIVISOR, rng.integers(0, 4, (6, 8)) * DIVISOR) for _ in range(3)]
    pairs += [(truth, np.where(rng.random(truth.shape) < 0.8, truth, 0)) for truth, _ in pairs]
    segments = np.zeros((6, 4, 4))  # class 4 never occurs
    for image, pair in enumerate(pairs):
        one = PanopticQuality(things=())
        one.add(*pair)
        for label, counts in one.counts().items():
            segments[image, label - 1] = counts
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 2, 0, 1, 3, 0]])
    found = mean_panoptic_quality(segments, weights)
    for row, overall, by_class in zip(weights, found.overall, found.by_class, strict=True):
        repeated = PanopticQuality(things=())
        for times, pair in zip(row, pairs, strict=True):
            for _ in range(times):
                repeated.add(*pair)
        scores = repeated.scores()
        assert overall == pytest.approx(scores.all.pq) and overall > 0
        assert by_class[:3] == pytest.approx([scores.by_class[k].pq for k in (1, 2, 3)]) and np.isnan(by_class[3])


def test_other_images_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare(judged(np.zeros(3)), judged(np.zeros(4)), seed=0)


def shares(right: np.ndarray, weights: np.ndarray) -> Resampled:
    """The share of right images, overall and of the one class that has truth; another has none."""
    overall = weights @ right / weights.sum(1)
    return Resampled(overall, np.stack([overall, np.full(len(overall), np.nan)], 1), np.zeros((len(weights), 0)))


def test_the_interval_of_one_model_is_that_of_its_groups_and_nobody_knows_one_of_a_single_group() -> None:
    right = np.arange(200) % 2
    ids = tuple(map(str, range(200)))
    judged = Judgement("k", {"g": {"f": 0.5}}, ids, ("a", "b"), 200, functools.partial(shares, right))
    single = intervals_of(judged, groups=ids)
    assert (single.low, single.high) == pytest.approx(
        (0.5 - 1.96 * 0.5 / 200**0.5, 0.5 + 1.96 * 0.5 / 200**0.5), abs=0.02
    )
    assert single.class_low[0] == single.low and single.class_high[0] == single.high
    assert np.isnan(single.class_low[1]) and single.groups == 200
    alike = [str(k // 20 * 2 + k % 2) for k in range(200)]  # groups in which all images are right, or all are wrong
    grouped = intervals_of(judged, groups=alike)
    assert grouped.high - grouped.low > 2 * (single.high - single.low) and grouped.groups == 20
    lonely = intervals_of(judged, groups=["one"] * 200)
    assert lonely.groups == 1 and np.isnan([lonely.low, lonely.high, *lonely.class_low, *lonely.class_high]).all()
