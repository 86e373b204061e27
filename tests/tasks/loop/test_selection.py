"""Selection is a pure function: every candidate comes out with the rule that decided, and replay gives equal bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DatasetError, UsageError
from infra.store import open_store
from tasks.labels.schema import LABELS
from tasks.loop.calibration import Calibration
from tasks.loop.candidates import Asked, Teacher, read_candidates
from tasks.loop.schemas import CALIBRATORS, CANDIDATES, PSEUDO_IMAGES, PSEUDO_LABELS, SPLIT_ITEMS, THRESHOLD_SETS
from tasks.loop.selection import Selection, changed_share, select, train_set_id
from tasks.loop.thresholds import ThresholdSet
from tasks.output.tables import append, decode_table, encode_table, list_tables, read, table_of
from tests.tasks.loop.rows import candidate, candidates, identity, thresholds
from tests.tasks.output.fake_output import FakeOutput, Item

BOX, FAR, NEAR = [0, 0, 20, 20], [30, 20, 50, 40], [1, 0, 21, 20]


def images(*names: str, status: str = "ok") -> list[dict[str, Any]]:
    return [{"image_id": name, "uri": name, "group_id": name, "status": status} for name in names]


def chosen(rows: list[dict[str, Any]], sets: ThresholdSet | None = None, **more: Any) -> Selection:
    names = sorted({row["image_id"] for row in rows})
    return select(
        candidates(rows), images(*names), thresholds=sets or thresholds({1: 0.8, 2: None}), scores=identity(), **more
    )


def reasons(found: Selection) -> list[tuple[str, str]]:
    return list(zip(found.labels["decision"].to_pylist(), found.labels["reason"].to_pylist(), strict=True))


def test_every_candidate_comes_out_with_the_rule_that_decided() -> None:
    rows = [
        candidate("a", 0, 0.95, BOX),
        candidate("a", 1, 0.85, NEAR),
        candidate("a", 2, 0.5, FAR),
        candidate("a", 3, 0.1, FAR),
        candidate("a", 4, 0.99, FAR, label=2),
        candidate("b", 0, 0.9, [0, 0, 5, 5]),
        candidate("b", 1, 0.9, [0, 0, 64, 48]),
    ]
    found = chosen(rows)
    assert reasons(found) == [
        ("accept", "certified"),
        ("ignore", "duplicate"),
        ("ignore", "below_t_hi"),
        ("reject", "below_t_lo"),
        ("ignore", "abstain"),
        ("ignore", "too_small"),
        ("ignore", "too_large"),
    ]
    assert found.labels.num_rows == len(rows)
    assert found.images.select(["n_candidates", "n_accept", "n_ignore"]).to_pylist() == [
        {"n_candidates": 5, "n_accept": 1, "n_ignore": 3},
        {"n_candidates": 2, "n_accept": 0, "n_ignore": 2},
    ]


def test_segments_of_panoptic_maps_are_accepted_or_ignored_and_may_fill_the_image() -> None:
    rows = [
        candidate("a", 0, 0.95, BOX),
        candidate("a", 1, 0.1, FAR),
        candidate("a", 2, 0.99, FAR, label=2),
        candidate("b", 0, 0.9, [0, 0, 5, 5]),
        candidate("b", 1, 0.9, [0, 0, 64, 48]),
    ]
    found = chosen([{**row, "kind": "panoptic"} for row in rows])
    assert reasons(found) == [
        ("accept", "certified"),
        ("ignore", "below_t_hi"),
        ("ignore", "abstain"),
        ("ignore", "too_small"),
        ("accept", "certified"),
    ]
    assert [weight > 0 for weight in found.labels["weight"].to_pylist()] == [True, False, False, False, True]


def test_class_box_and_mask_are_taught_apart() -> None:
    rows = [
        candidate("a", 0, 0.9, BOX, q_stability=0.9),
        candidate("b", 0, 0.9, BOX, q_stability=0.5),
        candidate("c", 0, 0.9, BOX, q_stability=0.3, q_tta=0.9),
        candidate("d", 0, 0.9, BOX, q_stability=0.9, q_tta=0.7),
        candidate("e", 0, 0.9, BOX, q_tta=0.9),
        candidate("f", 0, 0.9, BOX),
    ]
    found = chosen(rows, quality=identity())
    flags = found.labels.select(["decision", "accept_box", "accept_mask"]).to_pylist()
    assert [tuple(flag.values()) for flag in flags] == [
        ("accept", True, True),
        ("accept", False, False),
        ("accept", True, False),
        ("accept", False, True),
        ("accept", True, True),
        ("accept", True, True),  # nothing measured: the score is all there is
    ]
    assert not any(chosen(rows).labels["accept_mask"].to_pylist())  # without calibrated quality no mask is taught


def test_weights_have_mean_one_and_are_capped() -> None:
    rows = [candidate(f"i{k}", 0, score, BOX) for k, score in enumerate([0.81, 0.9, 0.99, 0.4])]
    weights = chosen(rows, quality=identity()).labels["weight"].to_pylist()
    assert np.mean(weights[:3]) == pytest.approx(1.0, abs=1e-5) and weights[3] == 0.0
    steep = Calibration({}, replace(identity().pooled, knots_x=(0.0, 0.98, 0.99), knots_y=(0.0, 0.001, 1.0)))
    found = select(candidates(rows), images("i0", "i1", "i2", "i3"), thresholds=thresholds({1: 0.8}), scores=steep)
    assert max(found.labels["weight"].to_pylist()) == 2.0


def some_rows(seed: int = 0, n: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        x, y = (int(value) for value in rng.integers(0, 30, 2))
        rows.append(
            candidate(
                f"i{k // 6:03d}",
                k % 6,
                float(rng.random()),
                [x, y, x + 14, y + 12],
                int(rng.integers(1, 3)),
                q_stability=float(rng.random()),
            )
        )
    return rows


def test_replay_from_storage_gives_the_same_bytes_and_the_same_training_set(store_uri: str) -> None:
    store = open_store(store_uri)
    rows, sets, scores = some_rows(), thresholds({1: 0.6, 2: 0.7}), identity()
    append(store, CANDIDATES, candidates(rows), round_number=1, kind="instance")
    append(store, THRESHOLD_SETS, sets.to_table())
    append(store, CALIBRATORS, scores.to_table("teacher@1"))
    first = chosen(rows, sets)
    random.Random(1).shuffle(rows)
    append(store, CANDIDATES, candidates(rows), round_number=1, kind="instance")  # another order: another object
    (one, other) = [stored.digest for stored in list_tables(store)["candidates"]]
    for digest in (one, other):
        again = select(
            read(store, CANDIDATES, [digest]),
            images(*sorted({row["image_id"] for row in rows})),
            thresholds=ThresholdSet.from_table(read(store, THRESHOLD_SETS)),
            scores=Calibration.from_table(read(store, CALIBRATORS)),
        )
        assert encode_table(PSEUDO_LABELS, again.labels) == encode_table(PSEUDO_LABELS, first.labels)
        assert encode_table(PSEUDO_IMAGES, again.images) == encode_table(PSEUDO_IMAGES, first.images)
        facts = {"label_set_id": "l", "splits_manifest_sha256": "m"}
        assert train_set_id(again, **facts) == train_set_id(first, **facts)


def test_the_training_set_is_named_by_labels_weights_and_the_human_part() -> None:
    facts = {"label_set_id": "l", "splits_manifest_sha256": "m"}
    found = chosen(some_rows())
    name = train_set_id(found, **facts)
    assert name != train_set_id(found, **{**facts, "label_set_id": "other"})
    assert name != train_set_id(chosen(some_rows(), thresholds({1: 0.9, 2: None})), **facts)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.0, 0.05))
def test_other_thresholds_need_no_other_candidates_and_raising_one_never_accepts_more(low: float, step: float) -> None:
    rows = some_rows(n=60)
    before, after = (chosen(rows, thresholds({1: t, 2: None}, t_lo=0.05)) for t in (low, low + step))
    accepted = [set(found.accepted["label_id"].to_pylist()) for found in (before, after)]
    assert accepted[1] <= accepted[0]
    assert before.labels["label_id"].equals(after.labels["label_id"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"round": 2}, "2 different round"),
        ({"teacher_weights_sha256": "bb" * 32}, "2 different teacher_weights_sha256"),
        ({"class_map_sha256": "bb" * 32}, "2 different class_map_sha256"),
        ({"split": "gate"}, "split gate"),
    ],
    ids=["round", "teacher", "class map", "split"],
)
def test_rows_that_do_not_belong_together_are_refused(change: dict[str, Any], words: str) -> None:
    rows = [candidate("a", 0, 0.9, BOX), {**candidate("a", 1, 0.9, FAR), **change}]
    with pytest.raises(DatasetError, match=words):
        chosen(rows)


def test_thresholds_of_another_teacher_and_unlisted_items_are_refused() -> None:
    rows = [candidate("a", 0, 0.9, BOX)]
    with pytest.raises(DatasetError, match="thresholds for"):
        chosen(rows, thresholds({1: 0.8}, model="other@2"))
    with pytest.raises(DatasetError, match="no thresholds"):
        chosen(rows, thresholds({2: 0.8}))
    with pytest.raises(DatasetError, match="listed once"):
        select(candidates(rows), images("b"), thresholds=thresholds({1: 0.8}), scores=identity())
    with pytest.raises(DatasetError, match="without a single candidate"):
        select(table_of(CANDIDATES, []), images("a"), thresholds=thresholds({1: 0.8}), scores=identity())


def test_empty_and_failed_items_have_a_row(tmp_path: Any) -> None:
    listed = images("a") + images("empty", status="empty") + images("broken", status="decode_error")
    found = select(
        candidates([candidate("a", 0, 0.9, BOX)]), listed, thresholds=thresholds({1: 0.8}), scores=identity()
    )
    counts = found.images.select(["image_id", "status", "n_candidates"]).to_pylist()
    assert [tuple(row.values()) for row in counts] == [
        ("a", "ok", 1),
        ("broken", "decode_error", 0),
        ("empty", "empty", 0),
    ]


def test_labels_are_linked_to_the_round_before() -> None:
    before = chosen([candidate("a", 0, 0.9, BOX), candidate("a", 1, 0.9, FAR)])
    rows = [
        {**row, "round": 2}
        for row in [
            candidate("a", 0, 0.9, NEAR),
            candidate("a", 1, 0.9, FAR, label=2),
            candidate("a", 2, 0.9, [40, 0, 60, 10]),
        ]
    ]
    after = chosen(rows, replace(thresholds({1: 0.8, 2: 0.8}), round=2), previous=before.labels)
    one, other, new = after.labels.to_pylist()
    assert one["previous_label_id"] == before.labels["label_id"][0].as_py() and not one["class_changed"]
    assert one["previous_iou"] == pytest.approx(380 / 420, abs=1e-5)
    assert other["class_changed"] and new["previous_label_id"] is None
    assert changed_share(None, before) == 1.0
    assert changed_share(before, after) == pytest.approx(1 - 1 / 4)


def test_a_kind_that_the_loop_cannot_teach_is_refused() -> None:
    with pytest.raises(UsageError, match="does not teach detection"):
        chosen([candidate("a", 0, 0.1, BOX, kind="detection")])


def test_pixel_regions_are_accepted_from_their_level_on() -> None:
    rows = [candidate("a", k, level, [0, 0, 9, 9], kind="semantic") for k, level in enumerate([0.5, 0.9, 0.95])]
    rows.append(candidate("a", 9, 0.99, BOX, label=2, kind="semantic"))
    assert reasons(chosen(rows, thresholds({1: 0.9, 2: None}))) == [
        ("ignore", "below_t_hi"), ("accept", "certified"), ("accept", "certified"), ("ignore", "abstain"),
    ]  # fmt: skip


def split_rows(*rows: tuple[str, str]) -> pa.Table:
    return table_of(
        SPLIT_ITEMS, [{"image_id": uri, "uri": uri, "group_id": uri, "split": split} for uri, split in rows]
    )


def test_a_teachers_run_becomes_candidates_of_unlabelled_items_and_nothing_else(tmp_path: Any) -> None:
    output = FakeOutput(open_store(str(tmp_path / "out")), measured=True)
    output.commit([
        Item("s3://p/a.jpg", stability=0.5), Item("s3://p/empty.jpg", num_instances=0), Item("s3://p/gate.jpg"),
        Item("s3://p/clip.mp4", frame=3, pts_s=0.12, track=True), Item("s3://p/bad.jpg", status="failed"),
    ])  # fmt: skip
    teacher = Teacher(output.version.model, "aa" * 32, 0, None, "cc" * 32, "c0ffee", "dd" * 32)
    listed = split_rows(
        ("s3://p/a.jpg", "unlabelled"), ("s3://p/empty.jpg", "unlabelled"), ("s3://p/gate.jpg", "excluded"),
        ("s3://p/clip.mp4", "unlabelled"), ("s3://p/bad.jpg", "unlabelled"),
    )  # fmt: skip
    asked = Asked("instance", 0.05, teacher, "r", 1)
    found, records = read_candidates(output.store, listed, asked)
    assert {image["image_id"]: image["status"] for image in records} == {
        "s3://p/a.jpg": "ok", "s3://p/empty.jpg": "empty", "s3://p/bad.jpg": "decode_error", "s3://p/clip.mp4#3": "ok",
    }  # fmt: skip
    frame = next(row for row in found.to_pylist() if row["media"] == "video")
    assert (frame["frame"], frame["pts_s"], frame["track_id"] is None) == (3, 0.12, False)
    stable = {row["image_id"]: row["q_stability"] for row in found.to_pylist()}
    assert stable == {"s3://p/a.jpg": 0.5, "s3://p/clip.mp4#3": None}, "what the rows say about a mask comes along"
    with pytest.raises(DatasetError, match="not by the teacher"):
        read_candidates(output.store, listed, replace(asked, teacher=replace(teacher, teacher_model_id="x@y")))
    with pytest.raises(DatasetError, match="in no split"):
        read_candidates(output.store, listed.slice(1), asked)


def test_tables_refuse_strange_columns_and_missing_values() -> None:
    with pytest.raises(ValueError, match="no column colour"):
        candidates([candidate("a", 0, 0.9, BOX, colour="red")])
    with pytest.raises(ValueError, match="split"):
        candidates([{**candidate("a", 0, 0.9, BOX), "split": None}])
    with pytest.raises(ValueError, match="not labels"):
        decode_table(LABELS, encode_table(CANDIDATES, candidates([candidate("a", 0, 0.9, BOX)])))


def pixel_row(image: str, seq: int, box: list[int], label: int = 1, level: float = 0.9) -> dict[str, Any]:
    return candidate(image, seq, level, box, label, kind="semantic")


def test_of_semantic_segmentation_pixels_are_counted_and_compared() -> None:
    """The same pixels at another level of confidence are the same labels."""
    sets = thresholds({1: 0.5, 2: 0.5})
    before = chosen([pixel_row("a", 0, [0, 0, 10, 10]), pixel_row("a", 1, [20, 0, 30, 10], 2)], sets)
    after = chosen(
        [
            pixel_row("a", 0, [0, 0, 10, 4], level=0.6),
            pixel_row("a", 1, [0, 4, 10, 10]),
            pixel_row("a", 2, [20, 0, 30, 5], 2),
            pixel_row("a", 3, [20, 5, 30, 10], 1),
        ],
        sets,
    )
    assert after.accepted_by_class() == {1: 150, 2: 50}
    assert after.accepted_by_name() == {"box": 50, "disc": 150}
    assert changed_share(before, after) == pytest.approx(1 - 150 / 250)
    assert changed_share(before, before) == 0.0
