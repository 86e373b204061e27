"""The pieces together: calibrate, select, audit against hidden truth, feed the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from modelkit import rle
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.loop.audits import audit_of, audit_table, draw_audit, precision_by_class
from tasks.loop.firewall import count_leaks
from tasks.loop.heartbeats import class_mix_heartbeat, js_divergence, labels_without_lineage, rate_heartbeats
from tasks.loop.methods import CalibratedFor
from tasks.loop.schemas import SPLIT_ITEMS
from tasks.loop.selection import Selection, select
from tasks.loop.thresholds import accepted_rates, scores_by_class, with_bands
from tasks.output.tables import table_of
from tasks.products.segments.loop_objects import calibrate_objects, look_at_objects
from tasks.products.segments.loop_pixels import calibrate_regions, look_at_pixels
from tests.tasks.loop.rows import candidate, candidates, identity, thresholds
from tests.tasks.loop.scenes import CLASSES, SIZE_HW, rectangle
from tests.tasks.products.test_pixels import pixel_rows

BY = CalibratedFor("teacher@1", 1, "m", seed=0, precision=0.9)


def verdicts_by_truth(accepted: pa.Table, truth: pa.Table) -> dict[str, bool]:
    """label_id -> right, of all accepted rows."""
    return look_at_objects(accepted, truth, accepted.num_rows, seed=0)


def world(rng: np.random.Generator, images: int, prefix: str) -> tuple[LabelSet, list[dict[str, Any]]]:
    """Discs are seen well, boxes often invented, stars hardly ever there; q_stability tells sharp masks from others."""
    items, rows = [], []
    for k in range(images):
        name, objects = f"{prefix}{k:04d}", []
        for slot in range(6):
            x, y = 10 * slot, int(rng.integers(0, 20))
            label = int(rng.choice([1, 1, 1, 1, 2, 2, 2, 3])) if rng.random() < 0.95 else 0
            if label == 3 and rng.random() < 0.9:
                label = 1
            if label:
                objects.append(LabelledObject(label, rectangle(x, y, x + 9, y + 9)))
            score = float(rng.random())
            sharp = rng.random() < 0.7
            box = [x, y, x + 9, y + 9 if sharp else y + 6]
            right = rng.random() < (1 - (1 - score) ** 3 if label == 1 else score)
            seen = label if right else 1 + label % 3
            if seen and rng.random() < 0.95:
                rows.append(candidate(name, slot, score, box, seen, q_stability=0.9 if sharp else 0.6))
        items.append(LabelledItem(name, SIZE_HW, tuple(objects)))
    return make_label_set(items, CLASSES, origin_format="test"), rows


@pytest.fixture(scope="module")
def round_one() -> tuple[Selection, LabelSet, Any, Any]:
    rng = np.random.default_rng(21)
    truth_c, rows_c = world(rng, 200, "c")
    truth_u, rows_u = world(rng, 300, "u")
    found = calibrate_objects(candidates(rows_c), truth_c, BY, truth_per_image=truth_c.truth_per_image())
    listed = [{"image_id": n, "uri": n, "group_id": n, "status": "ok"} for n in truth_u.table["image_id"].to_pylist()]
    table = candidates(rows_u)
    thresholds = with_bands(found.thresholds, scores_by_class(table), len(truth_u))
    chosen = select(table, listed, thresholds=thresholds, scores=found.scores, quality=found.quality)
    return chosen, truth_u, thresholds, found


def test_what_is_accepted_keeps_its_promise_on_hidden_truth(round_one: Any) -> None:
    chosen, truth, thresholds, _ = round_one
    verdicts = verdicts_by_truth(chosen.accepted, truth.table)
    reached = precision_by_class(chosen.accepted, verdicts)
    certified = [each for each in thresholds.classes if each.t_hi is not None]
    assert "disc" in {each.name for each in certified}
    assert "star" not in {each.name for each in certified if each.basis == "class"}
    for each in certified:
        right, judged = reached[each.name]
        assert judged > 50 and right / judged >= each.target_precision
    below = [row for row in chosen.labels.to_pylist() if row["decision"] != "accept" and row["label"] == 1]
    assert below  # something was given up for it


def test_masks_are_taught_where_they_are_sharp(round_one: Any) -> None:
    rows = [row for row in round_one[0].accepted.to_pylist() if row["accept_mask"]]
    assert len(rows) > 50 and {row["q_stability"] for row in rows} == {0.9}


def test_calibrated_scores_mean_what_they_say_on_unlabelled_items(round_one: Any) -> None:
    chosen, truth, _, found = round_one
    verdicts = verdicts_by_truth(chosen.labels, truth.table)
    rows = [row for row in chosen.labels.to_pylist() if row["label_id"] in verdicts]
    gap = abs(np.mean([row["score_calibrated"] for row in rows]) - np.mean([verdicts[row["label_id"]] for row in rows]))
    assert gap < 0.03 and found.scores.pooled.d_ece_after < found.scores.pooled.d_ece_before


def test_an_audit_draws_by_class_and_counts_errors(round_one: Any) -> None:
    chosen, truth, thresholds, _ = round_one
    verdicts = verdicts_by_truth(chosen.accepted, truth.table)
    sample = draw_audit(chosen.accepted, 120, seed=4)
    assert sample.num_rows == 120 and sample.equals(
        draw_audit(chosen.accepted.slice(0).sort_by("image_id"), 120, seed=4)
    )
    shares = [table["label"].to_numpy() for table in (sample, chosen.accepted)]
    assert abs((shares[0] == 1).mean() - (shares[1] == 1).mean()) < 0.01
    seen = {label: verdicts[label] for label in sample["label_id"].to_pylist() if label in verdicts}
    audit = audit_of(sample, seen, thresholds)
    assert audit.n == len(seen) and audit.errors == sum(not right for right in seen.values())
    assert 0.8 <= audit.promised <= 0.9
    rows = audit_table(chosen.accepted, seen, train_set_id="t", reviewers=["ada"]).to_pylist()
    total = next(row for row in rows if row["name"] is None)
    assert (total["n"], total["n_errors"], total["n_frame"]) == (audit.n, audit.errors, chosen.accepted.num_rows)


def test_accepted_rates_and_class_mix_feed_the_gate(round_one: Any) -> None:
    chosen, truth, thresholds, _ = round_one
    rates = accepted_rates(thresholds, chosen.accepted_by_class(), len(truth))
    (criterion,) = rate_heartbeats(rates)
    assert criterion.passed and 0 < (criterion.value or 0) < 1.2
    (refused,) = rate_heartbeats(accepted_rates(thresholds, {1: 100_000}, len(truth)))
    assert not refused.passed and "disc" in refused.reason
    assert not rate_heartbeats([])[0].passed
    assert js_divergence({"a": 3, "b": 1}, {"a": 6, "b": 2}) == pytest.approx(0.0)
    assert js_divergence({"a": 3}, {"b": 2}) == pytest.approx(1.0)
    assert class_mix_heartbeat({"a": 50, "b": 50}, {"a": 60, "b": 40}).passed
    assert not class_mix_heartbeat({"a": 50, "b": 50}, {"a": 95, "b": 5}).passed
    assert not class_mix_heartbeat({}, {"a": 1}).passed


def test_leaks_are_counted_anew_and_lineage_must_be_recorded(round_one: Any) -> None:
    chosen, _, thresholds, _ = round_one
    accepted = chosen.accepted
    names = sorted(set(accepted["image_id"].to_pylist()))
    items = [{"image_id": n, "uri": n, "group_id": n, "split": "unlabelled"} for n in names]
    assert count_leaks(accepted, table_of(SPLIT_ITEMS, items)) == 0
    leaky = [{**items[0], "split": "gate"}, {**items[1], "split": "excluded"}, *items[3:]]  # and one that is nowhere
    assert count_leaks(accepted, table_of(SPLIT_ITEMS, leaky)) == 3
    model = {"model_id": "teacher@1", "weights_sha256": "aa" * 32}
    sets = thresholds.to_table()
    assert labels_without_lineage(accepted, pa.Table.from_pylist([model]), sets) == 0
    other = pa.Table.from_pylist([{**model, "weights_sha256": "bb" * 32}])
    assert labels_without_lineage(accepted, other, sets) == accepted.num_rows
    assert labels_without_lineage(accepted, pa.Table.from_pylist([model]), sets.slice(0, 0)) == accepted.num_rows


def test_semantic_rounds_calibrate_and_select_pixels() -> None:
    rng = np.random.default_rng(9)
    left = np.where(np.arange(SIZE_HW[1]) < 32, 1, 2)[None].repeat(SIZE_HW[0], axis=0)
    items, rows = [], []
    for k in range(20):
        confidence = rng.uniform(0.5, 1.0, SIZE_HW)
        truth = np.where((left == 2) & (rng.random(SIZE_HW) > confidence**0.5), 1, left)
        objects = tuple(LabelledObject(label, rle.encode(truth == label)) for label in (1, 2))
        items.append(LabelledItem(f"i{k:02d}", SIZE_HW, objects))
        rows += pixel_rows(f"i{k:02d}", left, confidence)
    labels = make_label_set(items, CLASSES, origin_format="test")
    found = calibrate_regions(candidates(rows), labels, BY, background=None)
    sure, less, never = found.thresholds.classes
    assert sure.t_hi == 0.5 and less.t_hi is not None and less.t_hi > 0.5 and never.t_hi is None
    assert (less.lower_bound or 0) >= less.target_precision > 0.8
    listed = [{"image_id": item.uri, "uri": item.uri, "group_id": item.uri, "status": "ok"} for item in items]
    chosen = select(candidates(rows), listed, thresholds=found.thresholds, scores=found.scores)
    assert {row["decision"] for row in chosen.labels.to_pylist()} == {"accept", "ignore"}
    accepted = [row for row in chosen.accepted.to_pylist() if row["label"] == 2]
    assert min(row["score"] for row in accepted) == pytest.approx(less.t_hi)
    assert found.scores.of(2).d_ece_after < found.scores.of(2).d_ece_before + 1e-9


def test_an_audit_of_pixels_estimates_the_precision_of_pixels() -> None:
    """Small regions are wrong, large ones right: of rows half are wrong, of pixels a twentieth."""
    items, rows = [], []
    for k in range(150):
        name = f"i{k:03d}"
        items.append(LabelledItem(name, SIZE_HW, (LabelledObject(1, rectangle(0, 0, 38, 48)),)))
        rows.append(candidate(name, 0, 0.9, [0, 0, 38, 48], 1, kind="semantic"))
        rows.append(candidate(name, 1, 0.9, [38, 0, 40, 48], 1, kind="semantic"))
    labels = make_label_set(items, CLASSES, origin_format="test")
    accepted = select(
        candidates(rows),
        [{"image_id": item.uri, "uri": item.uri, "group_id": item.uri, "status": "ok"} for item in items],
        thresholds=thresholds({1: 0.5}),
        scores=identity(),
    ).accepted
    looked = look_at_pixels(accepted, labels.table, 120, background=0, seed=1)
    assert len(looked) == 120 and looked == look_at_pixels(accepted, labels.table, 120, background=0, seed=1)
    assert 0.85 < np.mean(list(looked.values())) < 1
    assert all(look_at_pixels(accepted, labels.table, 120, background=None, seed=1).values()), (
        "what is void says nothing"
    )
