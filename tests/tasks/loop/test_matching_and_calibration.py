"""Right and wrong as COCO has it; scores that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from infra.store import open_store
from tasks.evaluation.calibrators import d_ece, fit_isotonic
from tasks.labels.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.loop.calibration import Calibration, fit_calibration
from tasks.loop.schemas import CALIBRATORS
from tasks.output.tables import append, read
from tasks.products.segments.matching import match_candidates
from tests.tasks.loop.rows import candidate, candidates, joined, matches_of
from tests.tasks.loop.scenes import CLASSES, SIZE_HW, rectangle


def random_scene(rng: np.random.Generator, name: str) -> tuple[LabelledItem, list[dict[str, object]]]:
    """Objects, and candidates that are shifted copies or inventions."""
    objects, found = [], []
    for _ in range(rng.integers(1, 6)):
        x, y, w, h = rng.integers(0, 40), rng.integers(0, 28), rng.integers(6, 20), rng.integers(6, 16)
        label = int(rng.integers(1, 4))
        box = (int(x), int(y), int(x + w), int(y + h))
        objects.append(LabelledObject(label, rectangle(*box), is_crowd=bool(rng.random() < 0.15)))
        for _ in range(rng.integers(0, 3)):
            dx, dy = rng.integers(-4, 5, 2)
            moved = [max(box[0] + dx, 0), max(box[1] + dy, 0), min(box[2] + dx, 64), min(box[3] + dy, 48)]
            guess = label if rng.random() < 0.8 else 1 + label % 3
            found.append(candidate(name, len(found), round(float(rng.random()), 4), [int(v) for v in moved], guess))
    return LabelledItem(name, SIZE_HW, tuple(objects)), found


def coco_matches(items: list[LabelledItem], rows: list[dict[str, object]]) -> dict[tuple[str, int], bool]:
    """What pycocotools finds right (True), wrong (False) or not to be counted (absent) at IoU .5."""
    numbers = {item.image_id: k + 1 for k, item in enumerate(items)}
    annotations = [
        {"id": 100 * numbers[item.image_id] + k, "image_id": numbers[item.image_id], "category_id": each.label,
         "iscrowd": int(each.is_crowd), "area": 100, "bbox": [0, 0, 1, 1],
         "segmentation": {"size": list(SIZE_HW), "counts": each.rle}}
        for item in items for k, each in enumerate(item.objects)
    ]  # fmt: skip
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k, "height": SIZE_HW[0], "width": SIZE_HW[1]} for k in numbers.values()],
        "annotations": annotations,
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "info": {},
    }
    truth.createIndex()
    results = [
        {"image_id": numbers[row["image_id"]], "category_id": row["label"], "score": row["score"],
         "segmentation": {"size": list(SIZE_HW), "counts": row["rle"]}}
        for row in rows
    ]  # fmt: skip
    evaluator = COCOeval(truth, truth.loadRes(results), "segm")
    evaluator.params.iouThrs = np.array([0.5])
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluator.evaluate()
    verdicts = {}
    for entry in evaluator.evalImgs:
        if entry is None:
            continue
        matched, ignored = entry["dtMatches"][0], entry["dtIgnore"][0]
        for k, number in enumerate(entry["dtIds"]):
            if not ignored[k]:
                row = rows[number - 1]
                verdicts[(str(row["image_id"]), int(str(row["seq"])))] = bool(matched[k])
    return verdicts


def test_the_greedy_match_is_cocos(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(8)
    scenes = [random_scene(rng, f"i{k:02d}") for k in range(40)]
    items, rows = [item for item, _ in scenes], [row for _, found in scenes for row in found]
    labels = make_label_set(items, CLASSES, origin_format="test")
    found = match_candidates(candidates(rows), labels.table)
    ours = {
        (rows[row]["image_id"], rows[row]["seq"]): bool(correct)
        for row, correct in zip(found.row.tolist(), found.correct.tolist(), strict=True)
    }
    assert ours == coco_matches(items, rows)
    assert 30 < sum(ours.values()) < len(ours) < len(rows)  # right, wrong, and swallowed by crowds


def test_what_lies_on_void_is_neither_right_nor_wrong() -> None:
    item = LabelledItem("i", SIZE_HW, (LabelledObject(1, rectangle(0, 0, 10, 10)),), void_rle=rectangle(30, 0, 64, 48))
    rows = [
        candidate("i", 0, 0.9, [0, 0, 10, 10]),
        candidate("i", 1, 0.8, [40, 10, 50, 20]),
        candidate("i", 2, 0.7, [15, 20, 25, 30]),
    ]
    found = match_candidates(candidates(rows), make_label_set([item], CLASSES, origin_format="t").table)
    assert (found.row.tolist(), found.correct.tolist()) == ([0, 2], [True, False])


def test_candidates_of_other_images_are_refused() -> None:
    labels = make_label_set([LabelledItem("i", SIZE_HW)], CLASSES, origin_format="t")
    with pytest.raises(ValueError, match="elsewhere"):
        match_candidates(candidates([candidate("elsewhere", 0, 0.9, [0, 0, 9, 9])]), labels.table)


def test_isotonic_never_falls_and_equal_scores_share_a_value() -> None:
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(500), 2)
    fitted = fit_isotonic(scores, rng.random(500) < scores**2, label=None, feature="f", target="t")
    values = fitted(np.linspace(0, 1, 101))
    assert (np.diff(values) >= 0).all() and values.min() >= 0 and values.max() <= 1
    assert fitted.d_ece_after < 0.1 * fitted.d_ece_before + 0.02


def test_calibration_halves_the_error_on_other_images() -> None:
    rng = np.random.default_rng(2)

    def draw(n: int):  # type: ignore[no-untyped-def]
        scores = rng.random(n)
        return matches_of(scores, rng.random(n) < scores**3)

    fitted, fresh = fit_calibration(draw(2_000)), draw(2_000)
    before = d_ece(fresh.score, fresh.correct)
    after = d_ece(fitted.apply(fresh.label, fresh.score), fresh.correct)
    assert before > 0.2 and after < 0.05


def test_d_ece_is_zero_for_honest_scores_and_the_gap_for_others() -> None:
    assert d_ece(np.full(10, 0.5), np.arange(10) % 2 == 0) == pytest.approx(0.0)
    assert d_ece(np.full(10, 0.9), np.zeros(10)) == pytest.approx(0.9)
    assert d_ece(np.ones(4), np.ones(4)) == 0.0 and d_ece(np.zeros(0), np.zeros(0)) == 0.0


def test_rare_classes_share_the_pooled_calibrator_and_all_survive_storage(store_uri: str) -> None:
    common = matches_of(np.linspace(0, 1, 200), np.arange(200) > 100, label=1)
    rare = matches_of(np.linspace(0, 1, 10), np.arange(10) > 2, label=2)
    fitted = fit_calibration(joined(common, rare))
    assert set(fitted.by_class) == {1} and fitted.of(2) is fitted.pooled
    store = open_store(store_uri)
    append(store, CALIBRATORS, fitted.to_table("teacher@1"))
    again = Calibration.from_table(read(store, CALIBRATORS))
    assert again.pooled == fitted.pooled and again.by_class == dict(fitted.by_class)
