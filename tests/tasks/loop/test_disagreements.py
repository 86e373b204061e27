"""What champion and candidate see differently reaches a person, and comes back without loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store import open_store
from modelkit import rle
from tasks.labels.reading import read_label_set
from tasks.labels.shapes import box_mask_to_rle, brush_to_rle, rle_to_box_mask, rle_to_brush
from tasks.loop.disagreements import find_disagreements, read_disagreements, write_disagreements
from tasks.loop.kinds import loop_kind
from tasks.loop.selection import Selection, select
from tasks.products.segments.disagreement_files import to_cvat, to_label_studio
from tasks.products.segments.loop_objects import ObjectMethods
from tests.tasks.loop.rows import SIZE_HW, candidate, candidates, identity, thresholds
from tests.tasks.loop.scenes import CLASSES


def selected(rows: list[dict[str, object]]) -> Selection:
    names = sorted({str(row["image_id"]) for row in rows})
    listed = [{"image_id": name, "uri": name, "group_id": name, "status": "ok"} for name in names]
    return select(candidates(rows), listed, thresholds=thresholds({1: 0.5, 2: 0.5}), scores=identity())  # type: ignore[arg-type]


def two_models():  # type: ignore[no-untyped-def]
    one = selected([
        candidate("s3://b/same.png", 0, 0.9, [0, 0, 20, 20]),
        candidate("s3://b/class.png", 0, 0.9, [0, 0, 20, 20]),
        candidate("s3://b/outline.png", 0, 0.9, [0, 0, 20, 20]),
        candidate("s3://b/lost.png", 0, 0.7, [0, 0, 20, 20]),
    ])  # fmt: skip
    other = selected([
        candidate("s3://b/same.png", 0, 0.8, [0, 0, 20, 20]),
        candidate("s3://b/class.png", 0, 0.8, [0, 0, 20, 20], label=2),
        candidate("s3://b/outline.png", 0, 0.9, [0, 0, 20, 15]),
        candidate("s3://b/lost.png", 0, 0.6, [30, 20, 60, 40]),
    ])  # fmt: skip
    return one.accepted, other.accepted


def test_the_gravest_disagreements_come_first_and_agreements_not_at_all() -> None:
    found = find_disagreements(*two_models(), at_most=10)
    assert [(each.image_id, sorted(f.difference for f in each.findings), round(each.weight, 3)) for each in found] == [
        ("s3://b/lost.png", ["only_candidate", "only_champion"], 1.3),
        ("s3://b/class.png", ["class"], 0.9),
        ("s3://b/outline.png", ["outline"], 0.25),
    ]
    assert len(find_disagreements(*two_models(), at_most=1)) == 1


def test_a_prediction_that_a_person_takes_over_in_label_studio_comes_back_as_the_models(tmp_path: Path) -> None:
    tasks = json.loads(to_label_studio(find_disagreements(*two_models(), at_most=10)))
    assert [len(task["predictions"]) for task in tasks] == [2, 2, 2]
    for task in tasks:  # a person accepts the candidate's view
        taken = [{**region, "origin": "prediction"} for region in task["predictions"][-1]["result"]]
        task["annotations"] = [{"id": 1, "result": taken}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    labels = read_label_set(str(tmp_path / "export.json"), classes=CLASSES)
    by_uri = {row["uri"]: row for row in labels.table.to_pylist()}
    for row in two_models()[1].to_pylist():
        if "same" not in row["uri"]:
            assert by_uri[row["uri"]]["rles"] == [row["rle"]]
            assert by_uri[row["uri"]]["sources"] == ["model"]


def test_cvat_reads_the_masks_of_either_side(tmp_path: Path) -> None:
    found = find_disagreements(*two_models(), at_most=10)
    for side, table in zip(("champion", "candidate"), two_models(), strict=True):
        (tmp_path / "annotations.xml").write_bytes(to_cvat(found, side=side))
        rows = read_label_set(str(tmp_path / "annotations.xml"), classes=CLASSES).table.to_pylist()
        expected = {row["uri"]: row["rle"] for row in table.to_pylist() if "same" not in row["uri"]}
        assert {row["uri"]: row["rles"][0] for row in rows} == expected
        assert {source for row in rows for source in row["sources"]} == {"model"}
    with pytest.raises(ValueError, match="side"):
        to_cvat(found, side="teacher")


def test_an_empty_mask_is_no_disagreement_and_ends_no_round(store_uri: str) -> None:
    both = selected([
        candidate("s3://b/a.png", 0, 0.9, [0, 0, 20, 20]),
        candidate("s3://b/b.png", 0, 0.9, [0, 0, 20, 20], rle=rle.encode(np.zeros(SIZE_HW, bool)), area=0),
    ])  # fmt: skip
    seen = ObjectMethods().compared(both.labels)
    found = find_disagreements(seen.slice(0, 0), seen, at_most=10)
    assert [each.image_id for each in found] == ["s3://b/a.png"]
    assert len(write_disagreements(open_store(store_uri), found, loop_kind("instance"), "run-1", 1)) == 3


def test_the_tasks_of_a_round_lie_in_the_output(store_uri: str) -> None:
    store, kind = open_store(store_uri), loop_kind("instance")
    exported = find_disagreements(*two_models(), at_most=10)
    keys = write_disagreements(store, exported, kind, "run-1", 2)
    assert [key.rpartition("/")[2] for key in keys] == ["label_studio.json", "cvat_champion.xml", "cvat_candidate.xml"]
    assert all(key.startswith("disagreements/run-1/round=0002/") for key in keys)
    labels = read_label_set(store.uri_of(keys[2]), classes=CLASSES, images_root="s3://b")
    assert len(labels) == 3
    assert write_disagreements(store, [], kind, "run-1", 3) == []
    drawn = read_disagreements(store, kind, "run-1", 2)
    assert [(each.uri, each.differences) for each in drawn] == [(each.uri, each.differences) for each in exported]
    for side in ("champion", "candidate"):
        masks = [[row["rle"] for row in each.side(side)] for each in drawn]
        assert masks == [[row["rle"] for row in each.side(side)] for each in exported]
    assert read_disagreements(store, kind, "run-1", 3) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 0.95))
def test_masks_survive_both_tools_forms(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    code, size_hw = rle.encode(mask), (height, width)
    assert brush_to_rle(rle_to_brush(code, size_hw), size_hw) == code
    if mask.any():
        assert box_mask_to_rle(*rle_to_box_mask(code, size_hw), size_hw) == code


def test_long_runs_of_a_brush_are_divided() -> None:
    code = rle.encode(np.ones((300, 300), bool))
    assert brush_to_rle(rle_to_brush(code, (300, 300)), (300, 300)) == code
