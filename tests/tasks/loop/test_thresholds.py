"""Which class is certified alone, which in a pool, and which abstains; and the bands that follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.store import open_store
from tasks.loop.schemas import THRESHOLD_SETS
from tasks.loop.thresholds import ThresholdSet, accepted_rates, certify_thresholds, with_bands
from tasks.output.tables import append, read
from tests.tasks.loop.rows import joined, matches_of, thresholds
from tests.tasks.loop.scenes import CLASSES

FACTS = {
    "model_id": "teacher@1",
    "round_number": 1,
    "calibration_split": "m",
    "truth_per_image": {1: 2.0, 2: 0.5, 3: 0.1},
}


def perfect(label: int, n: int, truth: int | None = None):  # type: ignore[no-untyped-def]
    return matches_of(np.linspace(1, 0.3, n), np.ones(n, bool), label=label, truth=truth)


def test_more_evidence_promises_more() -> None:
    found = certify_thresholds(joined(perfect(1, 450), perfect(2, 200), perfect(3, 20)), CLASSES, **FACTS)  # type: ignore[arg-type]
    assert [(each.basis, each.target_precision) for each in found.classes] == [
        ("class", 0.9), ("class", 0.8), ("abstain", 0.8),
    ]  # fmt: skip
    assert all(each.t_hi == pytest.approx(0.3) and each.lower_bound is not None for each in found.classes[:2])


def test_small_classes_share_a_pool_and_a_bad_one_among_them_abstains() -> None:
    good = [perfect(1, 100), perfect(2, 100)]
    bad = matches_of(np.linspace(1, 0.3, 30), np.arange(30) % 2 == 0, label=3, truth=30)
    found = certify_thresholds(joined(*good, bad), CLASSES, **FACTS)  # type: ignore[arg-type]
    assert [each.basis for each in found.classes] == ["pooled", "pooled", "abstain"]
    assert found.of(1).t_hi == found.of(2).t_hi and found.of(3).t_hi is None
    assert "of its" in found.of(3).note


def test_super_classes_pool_apart() -> None:
    wrong = matches_of(np.linspace(1, 0.3, 100), np.zeros(100, bool), label=2)
    found = certify_thresholds(
        joined(perfect(1, 100), wrong, perfect(3, 100)),
        CLASSES,
        super_classes={1: "a", 2: "b", 3: "a"},
        **FACTS,  # type: ignore[arg-type]
    )
    assert [each.basis for each in found.classes] == ["pooled", "abstain", "pooled"]


def test_a_class_whose_truth_was_dropped_abstains_and_is_never_given_a_default() -> None:
    lost = matches_of(np.linspace(1, 0.3, 500), np.zeros(500, bool), label=3, truth=0)
    found = certify_thresholds(joined(perfect(1, 450), perfect(2, 450), lost), CLASSES, **FACTS)  # type: ignore[arg-type]
    assert found.of(3).basis == "abstain" and found.of(3).t_hi is None


def test_a_long_tail_of_candidates_does_not_hide_the_precise_ones() -> None:
    """Every prediction from .05 on is a candidate: most are wrong, and a fifth of them would be a hopeless start."""
    scores = np.concatenate([np.linspace(1, 0.6, 450), np.linspace(0.5, 0.05, 5_000)])
    correct = np.concatenate([np.ones(450, bool), np.zeros(5_000, bool)])
    found = certify_thresholds(matches_of(scores, correct, truth=500), CLASSES[:1], **FACTS)  # type: ignore[arg-type]
    assert found.of(1).basis == "class" and 0.45 < found.of(1).t_hi < 0.75  # type: ignore[operator]


def test_masks_have_a_certified_quality_of_their_own() -> None:
    one = perfect(1, 450)
    quality = np.linspace(1, 0, 450)
    sharp = replace(one, iou=np.where(quality > 0.5, 0.9, 0.6))
    found = certify_thresholds(sharp, CLASSES[:1], quality=quality, is_good=sharp.iou >= 0.75, **FACTS)  # type: ignore[arg-type]
    assert 0.38 < found.of(1).t_quality < 0.5  # type: ignore[operator]
    blurred = certify_thresholds(one, CLASSES[:1], quality=quality, is_good=np.zeros(450, bool), **FACTS)  # type: ignore[arg-type]
    assert blurred.of(1).t_quality is None
    assert "that of 0 of 450 is good, and 0.80 is promised" in blurred.of(1).note


def test_of_masks_another_precision_may_be_promised() -> None:
    one = perfect(1, 450)
    good = np.arange(450) % 10 < 7  # whatever the quality is, seven of ten are good
    asked = {"quality": np.linspace(1, 0, 450), "is_good": good, **FACTS}
    assert certify_thresholds(one, CLASSES[:1], **asked).of(1).t_quality is None  # type: ignore[arg-type]
    lower = certify_thresholds(one, CLASSES[:1], geometry_precision=0.6, **asked)  # type: ignore[arg-type]
    assert lower.of(1).t_quality == pytest.approx(0.0, abs=0.05) and "geometry" not in lower.of(1).note


def test_background_begins_where_the_labels_expect_no_more_objects() -> None:
    base = thresholds({1: 0.8, 2: None})
    scores = {1: np.linspace(0.99, 0.01, 99), 2: np.linspace(0.99, 0.01, 99)}
    banded = with_bands(base, scores, num_images=30)  # truth_per_image 1: rank 30
    assert banded.of(1).t_lo == pytest.approx(0.70)
    assert with_bands(base, scores, num_images=5).of(1).t_lo == 0.8  # never above t_hi
    assert with_bands(base, scores, num_images=1_000).of(1).t_lo == 0.05
    assert banded.of(2).t_lo == 0.05  # abstains: all ignored, none background


def test_more_objects_than_the_labels_expect_are_refused() -> None:
    rates = accepted_rates(thresholds({1: 0.8, 2: 0.8, 3: None}), {1: 21, 2: 1}, num_images=10)
    assert [(rate.label, rate.verdict) for rate in rates] == [(1, "refuse"), (2, "warn")]
    assert accepted_rates(thresholds({1: 0.8}), {1: 9}, num_images=10)[0].verdict == "ok"


def test_a_threshold_set_is_named_by_its_content_and_survives_storage(store_uri: str) -> None:
    store = open_store(store_uri)
    one = thresholds({1: 0.8, 2: None})
    append(store, THRESHOLD_SETS, one.to_table())
    assert ThresholdSet.from_table(read(store, THRESHOLD_SETS)) == one
    other = thresholds({1: 0.81, 2: None})
    assert other.threshold_set_id != one.threshold_set_id
    append(store, THRESHOLD_SETS, other.to_table())
    with pytest.raises(ValueError, match="2 threshold sets"):
        ThresholdSet.from_table(read(store, THRESHOLD_SETS))
    changed = one.to_table().to_pylist()
    changed[0]["t_lo"] = 0.3
    with pytest.raises(ValueError, match="content"):
        ThresholdSet.from_table(one.to_table().from_pylist(changed, schema=one.to_table().schema))
