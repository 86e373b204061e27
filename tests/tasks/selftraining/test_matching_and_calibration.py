"""Right and wrong as COCO has it; scores that mean what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from infra.store import open_store
from modelkit import ClassInfo, rle
from tasks.selftraining.calibration import Calibration, d_ece, fit_calibration, fit_isotonic
from tasks.selftraining.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.selftraining.matching import match_candidates
from tasks.selftraining.pixels import (
    LEVELS,
    calibrate_pixels,
    certify_pixel_thresholds,
    confidence_regions,
    count_pixels,
    pixel_error,
)
from tasks.selftraining.tables import append, read
from tests.tasks.selftraining.rows import candidate, candidates, joined, matches_of
from tests.tasks.selftraining.scenes import CLASSES, SIZE_HW, rectangle


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
        {"image_id": numbers[row["image_id"]], "category_id": row["class_id"], "score": row["score_raw"],
         "segmentation": {"size": list(SIZE_HW), "counts": row["mask_rle"]}}
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
    fitted = fit_isotonic(scores, rng.random(500) < scores**2, class_id=None, feature="f", target="t")
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
    after = d_ece(fitted.apply(fresh.class_id, fresh.score), fresh.correct)
    assert before > 0.2 and after < 0.05


def test_d_ece_is_zero_for_honest_scores_and_the_gap_for_others() -> None:
    assert d_ece(np.full(10, 0.5), np.arange(10) % 2 == 0) == pytest.approx(0.0)
    assert d_ece(np.full(10, 0.9), np.zeros(10)) == pytest.approx(0.9)
    assert d_ece(np.ones(4), np.ones(4)) == 0.0 and d_ece(np.zeros(0), np.zeros(0)) == 0.0


def test_rare_classes_share_the_pooled_calibrator_and_all_survive_storage(store_uri: str) -> None:
    common = matches_of(np.linspace(0, 1, 200), np.arange(200) > 100, class_id=1)
    rare = matches_of(np.linspace(0, 1, 10), np.arange(10) > 2, class_id=2)
    fitted = fit_calibration(joined(common, rare))
    assert set(fitted.by_class) == {1} and fitted.of(2) is fitted.pooled
    store = open_store(store_uri)
    append(store, "calibrators", fitted.to_table("teacher@1"))
    again = Calibration.from_table(read(store, "calibrators"))
    assert again.pooled == fitted.pooled and again.by_class == dict(fitted.by_class)


# --- pixels ------------------------------------------------------------------------------------------------------


def pixel_rows(name: str, class_map: np.ndarray, confidence: np.ndarray) -> list[dict[str, object]]:
    return [
        candidate(
            name,
            k,
            region.level,
            [0, 0, 1, 1],
            region.class_id,
            task="semantic",
            mask_rle=region.rle,
            mask_area=region.area,
        )
        for k, region in enumerate(confidence_regions(class_map, confidence))
    ]


def test_regions_hold_every_pixel_once_at_its_level() -> None:
    rng = np.random.default_rng(5)
    class_map, confidence = rng.integers(1, 4, SIZE_HW), rng.random(SIZE_HW)
    regions = confidence_regions(class_map, confidence)
    assert sum(region.area for region in regions) == class_map.size
    for region in regions:
        above = LEVELS[LEVELS.index(region.level) + 1] if region.level < LEVELS[-1] else np.inf
        expected = (class_map == region.class_id) & (confidence >= region.level) & (confidence < above)
        assert region.area == expected.sum()
    with pytest.raises(ValueError, match="NaN"):
        confidence_regions(class_map, np.full(SIZE_HW, np.nan))


def pixel_counts(rng: np.random.Generator, images: int, bad_images: float):  # type: ignore[no-untyped-def]
    """Class 1 left, class 2 right; on bad images all of class 2 is wrong, as confident as ever."""
    items, rows = [], []
    left = np.where(np.arange(SIZE_HW[1]) < 32, 1, 2)[None].repeat(SIZE_HW[0], axis=0)
    for k in range(images):
        truth = left.copy()
        if rng.random() < bad_images:
            truth[:, 32:] = 1
        objects = [LabelledObject(c, rle.encode(truth == c)) for c in (1, 2) if (truth == c).any()]
        items.append(LabelledItem(f"i{k:03d}", SIZE_HW, tuple(objects)))
        rows += pixel_rows(f"i{k:03d}", left, rng.uniform(0.4, 1.0, SIZE_HW))
    labels = make_label_set(items, CLASSES, origin_format="t")
    return count_pixels(candidates(rows), labels.table, [1, 2, 3])


def test_pixel_thresholds_count_images_not_pixels() -> None:
    facts = {"model_id": "m", "round_number": 1, "calibration_split": "s", "seed": 0}
    counts = pixel_counts(np.random.default_rng(6), 30, bad_images=0.08)
    share = counts.right[:, 1].sum() / counts.total[:, 1].sum()
    assert share > 0.9  # the pixels alone, tens of thousands of them, would certify class 2 at once
    found = certify_pixel_thresholds(counts, CLASSES, **facts)  # type: ignore[arg-type]
    assert [(each.basis, each.t_hi) for each in found.classes] == [("class", 0.5), ("abstain", None), ("abstain", None)]
    assert found == certify_pixel_thresholds(counts, CLASSES, **facts)  # type: ignore[arg-type]


def test_classes_on_few_images_abstain() -> None:
    counts = pixel_counts(np.random.default_rng(6), 9, bad_images=0.0)
    found = certify_pixel_thresholds(
        counts, [ClassInfo(1, "disc"), ClassInfo(2, "box")], model_id="m", round_number=1, calibration_split="s", seed=0
    )
    assert [each.basis for each in found.classes] == ["abstain", "abstain"]


def test_what_no_object_covers_is_void_or_background() -> None:
    class_map = np.where(np.arange(SIZE_HW[1]) < 32, 1, 0)[None].repeat(SIZE_HW[0], axis=0)
    item = LabelledItem("i", SIZE_HW, (LabelledObject(1, rle.encode(class_map == 1)),))
    table = make_label_set([item], CLASSES, origin_format="t").table
    rows = candidates(pixel_rows("i", class_map, np.full(SIZE_HW, 0.9)))
    half = SIZE_HW[0] * 32
    void = count_pixels(rows, table, [0, 1])
    assert void.total.sum(axis=(0, 2)).tolist() == [0, half] and void.truth.tolist() == [[0, half]]
    known = count_pixels(rows, table, [0, 1], background=0)
    assert known.right.sum(axis=(0, 2)).tolist() == [half, half] and known.truth.tolist() == [[half, half]]


def test_pixel_error_is_the_gap_between_what_was_expected_and_what_is_right() -> None:
    honest = pixel_counts(np.random.default_rng(7), 12, bad_images=0.0)
    calibration = calibrate_pixels(honest)
    assert pixel_error(calibration, honest) == pytest.approx(0.0, abs=1e-6)
    wrong = replace(honest, right=honest.right // 2)
    assert pixel_error(calibration, wrong) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(pixel_error(calibration, replace(honest, total=honest.total * 0, right=honest.right * 0)))
