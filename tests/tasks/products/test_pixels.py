"""Pixels as candidates, and what is promised of the accepted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit import ClassInfo, rle
from tasks.labels.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.loop.disagreements import ONLY_CANDIDATE, ONLY_CHAMPION, find_disagreements
from tasks.products.segments.pixel_thresholds import certify_pixel_thresholds, relative_target
from tasks.products.segments.pixels import (
    LEVELS,
    PixelCounts,
    by_class,
    calibrate_pixels,
    confidence_regions,
    count_pixels,
    pixel_error,
)
from tests.tasks.loop.rows import candidate, candidates
from tests.tasks.loop.scenes import CLASSES, SIZE_HW


def pixel_rows(name: str, class_map: np.ndarray, confidence: np.ndarray) -> list[dict[str, object]]:
    return [
        candidate(
            name,
            k,
            region.level,
            [0, 0, 1, 1],
            region.label,
            kind="semantic",
            rle=region.rle,
            area=region.area,
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
        expected = (class_map == region.label) & (confidence >= region.level) & (confidence < above)
        assert region.area == expected.sum()
    with pytest.raises(ValueError, match="NaN"):
        confidence_regions(class_map, np.full(SIZE_HW, np.nan))


def test_what_people_compare_is_one_region_for_each_class_without_background_and_specks() -> None:
    classes, confidence = np.zeros(SIZE_HW, np.int64), np.full(SIZE_HW, 0.9)
    classes[:10, :12], classes[20:23, 20:23] = 1, 2
    confidence[:5, :12] = 0.6
    rows = sure(pixel_rows("a", classes, confidence))
    [region] = by_class(rows, background=0, min_area=32).to_pylist()
    assert region["label"] == 1 and region["area"] == 120
    assert (rle.decode(region["rle"], SIZE_HW) == (classes == 1)).all()
    assert region["box_xyxy"] == [0, 0, 12, 10]
    assert region["score_calibrated"] == pytest.approx(0.75), "weighted by pixels"
    speck = by_class(rows, background=0, min_area=9)
    assert [row["label"] for row in speck.to_pylist()] == [1, 2]
    moved = np.roll(classes, SIZE_HW[1] // 2, axis=1)
    other = sure(pixel_rows("a", moved, confidence))
    [found] = find_disagreements(
        *(labelled(by_class(each, background=0, min_area=32)) for each in (rows, other)), at_most=5
    )
    assert [each.difference for each in found.findings] == [ONLY_CHAMPION, ONLY_CANDIDATE]


def sure(rows: list[dict[str, object]]) -> pa.Table:
    """Candidates whose scores mean what they say."""
    table = candidates(rows)
    return table.append_column("score_calibrated", table["score"])


def labelled(table: pa.Table) -> pa.Table:
    return table.append_column("label_id", pa.array([str(k) for k in range(table.num_rows)]))


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


def counts_of(precision: dict[int, Sequence[float]], pixels: dict[int, int], images: int = 40) -> PixelCounts:
    """Every image alike: per class so many pixels at each level from .5 on, of which such a share is right."""
    ids = sorted(precision)
    total = np.zeros((images, len(ids), len(LEVELS)), np.int64)
    right = total.copy()
    for k, label in enumerate(ids):
        total[:, k, 1:] = pixels[label]
        right[:, k, 1:] = np.round(np.array(precision[label]) * pixels[label])
    return PixelCounts(total, right, total.sum(axis=2), tuple(ids), tuple(f"i{k}" for k in range(images)))


FACTS = {"model_id": "m", "round_number": 1, "calibration_split": "s", "seed": 0}
RISING = np.linspace(0.3, 1.0, len(LEVELS) - 1)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_error_allowed_is_a_share_of_that_of_calling_everything_so(promise: float, share: float) -> None:
    allowed = 1 - relative_target(promise, share)
    assert allowed == pytest.approx((1 - promise) * (1 - share), abs=1e-12)
    assert relative_target(promise, 0.0) == pytest.approx(promise)


def test_a_background_that_swallows_missed_objects_starts_at_a_higher_level() -> None:
    """.95 of its pixels are right from .5 on: enough for a rare class, not for one that fills nine tenths."""
    precision = np.linspace(0.90, 1.0, len(LEVELS) - 1)
    counts = counts_of({0: precision, 1: precision}, {0: 900, 1: 100})
    classes = [ClassInfo(0, "background", is_thing=False), ClassInfo(1, "disc")]
    found = certify_pixel_thresholds(counts, classes, background=0, **FACTS)  # type: ignore[arg-type]
    common, rare = found.classes
    assert common.t_hi is not None and rare.t_hi is not None and common.t_hi > rare.t_hi
    assert common.target_precision == pytest.approx(0.99) and rare.target_precision == pytest.approx(0.91)
    kept = common.n_correct / common.n_accepted
    assert kept >= common.target_precision


def on_few_images(counts: PixelCounts, images: dict[int, range]) -> PixelCounts:
    """The counts with some classes on some images only."""
    total, right, truth = counts.total.copy(), counts.right.copy(), counts.truth.copy()
    for label, kept in images.items():
        place = counts.labels.index(label)
        gone = [k for k in range(len(counts.image_ids)) if k not in kept]
        total[gone, place], right[gone, place], truth[gone, place] = 0, 0, 0
    return replace(counts, total=total, right=right, truth=truth)


def test_classes_on_few_images_are_pooled_at_the_lower_promise_and_the_background_never_is() -> None:
    weak = np.clip(RISING, 0.5, 0.88)  # never .90
    counts = counts_of({0: weak, 1: weak, 2: weak, 3: RISING}, {0: 500, 1: 100, 2: 100, 3: 100})
    counts = on_few_images(counts, {1: range(10), 2: range(10, 20)})
    classes = [ClassInfo(0, "background", is_thing=False), *CLASSES]
    found = certify_pixel_thresholds(counts, classes, background=0, **FACTS)  # type: ignore[arg-type]
    assert [each.basis for each in found.classes] == ["abstain", "pooled", "pooled", "class"]
    first, second = found.classes[1:3]
    assert first.t_hi == second.t_hi and first.lower_bound is not None
    assert first.lower_bound >= first.target_precision >= 0.80


def test_a_member_that_plainly_breaks_the_promise_of_its_pool_abstains() -> None:
    good, bad = np.full(len(RISING), 0.89), np.full(len(RISING), 0.5)
    counts = counts_of({1: good, 2: good, 3: bad}, {1: 300, 2: 300, 3: 2})
    counts = replace(on_few_images(counts, {1: range(10), 2: range(10, 20)}), truth=np.full((40, 3), 10))
    found = certify_pixel_thresholds(counts, CLASSES, **FACTS)  # type: ignore[arg-type]
    assert [each.basis for each in found.classes] == ["pooled", "pooled", "abstain"]
    assert "are right" in found.classes[2].note and found.classes[2].n_accepted == 0


@pytest.mark.parametrize(("images", "promised"), [(13, None), (14, 0.80), (28, 0.80), (29, 0.90)])
def test_what_is_promised_depends_on_the_images(images: int, promised: float | None) -> None:
    perfect = np.ones(len(RISING))
    counts = on_few_images(counts_of({1: perfect, 2: perfect}, {1: 1, 2: 10_000}), {1: range(images)})
    classes = [ClassInfo(1, "disc"), ClassInfo(2, "rest")]
    found = certify_pixel_thresholds(counts, classes, background=2, **FACTS).of(1)  # type: ignore[arg-type]
    assert (found.t_hi is None) == (promised is None)
    assert promised is None or found.target_precision == pytest.approx(promised, abs=1e-4)


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


def test_pixels_in_a_box_without_a_mask_are_void_whatever_the_background() -> None:
    class_map = np.zeros(SIZE_HW, np.int64)
    item = LabelledItem("i", SIZE_HW, (LabelledObject(1, None, (0.0, 0.0, 10.0, 20.0)),))
    table = make_label_set([item], CLASSES, origin_format="t").table
    rows = candidates(pixel_rows("i", class_map, np.full(SIZE_HW, 0.9)))
    counts = count_pixels(rows, table, [0, 1], background=0)
    assert counts.total.sum() == counts.right.sum() == class_map.size - 10 * 20


def test_pixel_error_is_the_gap_between_what_was_expected_and_what_is_right() -> None:
    honest = pixel_counts(np.random.default_rng(7), 12, bad_images=0.0)
    calibration = calibrate_pixels(honest)
    assert pixel_error(calibration, honest) == pytest.approx(0.0, abs=1e-6)
    wrong = replace(honest, right=honest.right // 2)
    assert pixel_error(calibration, wrong) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(pixel_error(calibration, replace(honest, total=honest.total * 0, right=honest.right * 0)))


@pytest.mark.parametrize("images", [20, 40, 120])
def test_the_promise_is_broken_in_few_calibrations_though_objects_are_right_or_wrong_as_a_whole(images: int) -> None:
    """One object an image, of one level, certainly wrong more often where less confident; 200 calibrations."""
    rng, broken, certified = np.random.default_rng(images), 0, 0
    quality = np.linspace(0.6, 1.0, len(LEVELS) - 1)  # by level from .5 on, all levels as likely
    true_precision = np.cumsum(quality[::-1])[::-1] / np.arange(len(quality), 0, -1)
    for _ in range(200):
        level = rng.integers(1, len(LEVELS), images)
        right = rng.random(images) < quality[level - 1]
        counts = counts_of({1: np.ones(len(quality)), 2: np.ones(len(quality))}, {1: 0, 2: 0}, images)
        counts.total[np.arange(images), 0, level] = 100
        counts.right[np.arange(images), 0, level] = 100 * right
        counts.truth[:] = [1, 99]  # the other class fills nearly everything, so the promise is what it says
        classes = [ClassInfo(1, "disc"), ClassInfo(2, "rest")]
        found = certify_pixel_thresholds(counts, classes, background=2, **FACTS)  # type: ignore[arg-type]
        first = found.of(1)
        if first.t_hi is not None:
            certified += 1
            broken += true_precision[LEVELS.index(first.t_hi) - 1] < first.target_precision
    assert broken <= 20, f"{broken} of 200 calibrations break their promise"
    assert certified >= {20: 10, 40: 60, 120: 150}[images]
