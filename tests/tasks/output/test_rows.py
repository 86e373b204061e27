from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco

from tasks.output.encoding import PartFacts, failed_row, ok_row, rows_to_table
from tasks.output.layout import make_version
from tasks.output.schema import schema_named
from tasks.products.segments.schema import MEASURED
from tasks.records import ItemFailure
from tests.tasks.output.parts import CLASS_NAMES, SIZE_HW, VERSION, a_frame, an_entry, some_rows, squares

FACTS = PartFacts(VERSION, 1, "aa11", "an-attempt", "run-1", class_names=CLASS_NAMES)
LISTS = ["labels", "names", "scores", "boxes_xyxy", "areas", "rles", "is_thing"]


def table_of(*rows: object) -> pa.Table:
    return rows_to_table(list(rows), FACTS)  # type: ignore[arg-type]


def test_the_table_has_exactly_the_frozen_schema() -> None:
    table = rows_to_table(some_rows(), FACTS)
    assert table.schema.equals(schema_named("segments", "segments.v1"), check_metadata=True)
    table.validate(full=True)


def test_one_row_per_item_sorted_by_uri_and_frame() -> None:
    table = rows_to_table(some_rows(), FACTS)
    assert list(zip(table["uri"].to_pylist(), table["frame"].to_pylist(), strict=True)) == [
        ("s3://b/a.jpg", 0),
        ("s3://b/c.jpg", 0),
        ("s3://b/m.mp4", 9),
        ("s3://b/m.mp4", 10),
        ("s3://b/q.jpg", 0),
        ("s3://b/z.jpg", 0),
    ]
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "ok", "quarantined", "ok"]


def test_what_was_found_is_in_parallel_lists() -> None:
    row = table_of(ok_row(an_entry(), a_frame(notes=("a note",)), squares(3))).to_pylist()[0]
    assert row["labels"] == [1, 2, 3]
    assert row["names"] == ["disc", "square", "class 3"]  # a class the record doesn't name keeps its number
    assert row["scores"] == pytest.approx([0.9, 0.7, 0.5])
    assert row["boxes_xyxy"] == [[0, 0, 5, 4], [2, 1, 8, 5], [4, 2, 11, 6]]
    assert row["areas"] == [20, 24, 28]
    assert row["is_thing"] == [True, False, True]
    assert row["track_ids"] is None
    assert (row["width"], row["height"]) == (60, 40)
    assert row["notes"] == ["a note"]
    assert (row["stage"], row["error_type"], row["error"]) == (None, None, None)
    for box, mask in zip(row["boxes_xyxy"], row["rles"], strict=True):
        x, y, w, h = coco.toBbox({"size": list(SIZE_HW), "counts": mask})
        assert [x, y, x + w, y + h] == box


def test_measured_qualities_have_columns_where_the_version_has_them_and_are_null_where_not_measured() -> None:
    schema_id, schema = MEASURED, schema_named("segments", MEASURED)
    version = make_version("segments", model="m@1", model_digest="ab" * 32, parameters={}, schema=schema_id)
    stable = {"q_stability": np.array([0.5, 1.0], np.float32)}
    rows = [
        ok_row(an_entry("a"), a_frame(), dataclasses.replace(squares(2), qualities=stable)),
        ok_row(an_entry("b"), a_frame(), squares(2)),
        failed_row(an_entry("c"), a_frame(size_hw=None), ItemFailure("fetch", "ObjectGone", "gone")),
    ]
    table = rows_to_table(rows, dataclasses.replace(FACTS, version=version))
    assert table.schema.equals(schema, check_metadata=True)
    assert table["q_stability"].to_pylist() == [[0.5, 1.0], None, None]
    assert table["q_tta"].to_pylist() == [None, None, None]
    assert rows_to_table(rows, FACTS).schema.names == schema_named("segments", "segments.v1").names, (
        "others have no such columns"
    )


def test_nothing_found_is_an_empty_list_and_nothing_read_is_null() -> None:
    failure = ItemFailure("fetch", "ObjectGone", "s3://b/b.jpg does not exist")
    empty, failed = table_of(
        ok_row(an_entry("a"), a_frame(), squares(0)), failed_row(an_entry("b"), a_frame(size_hw=None), failure)
    ).to_pylist()
    assert [empty[name] for name in LISTS] == [[]] * len(LISTS)
    assert [failed[name] for name in LISTS] == [None] * len(LISTS)
    assert (failed["stage"], failed["error_type"], failed["error"]) == ("fetch", "ObjectGone", failure.error)
    assert (failed["width"], failed["height"]) == (None, None)


def test_models_without_masks_have_box_areas_and_no_rles() -> None:
    row = table_of(ok_row(an_entry(), a_frame(), squares(2, masks=False))).to_pylist()[0]
    assert row["rles"] is None
    assert row["areas"] == [20, 24]


def test_lists_stay_with_their_rows_across_gaps() -> None:
    failure = ItemFailure("decode", "X", "y")
    rows = []
    for i in range(50):
        entry = an_entry(f"s3://b/{i:03d}")
        rows.append(
            failed_row(entry, a_frame(), failure)
            if i % 3 == 0
            else ok_row(entry, a_frame(), squares(i % 7, tracks=i % 2 == 0))
        )
    for i, row in enumerate(rows_to_table(rows[::-1], FACTS).to_pylist()):
        if i % 3 == 0:
            assert row["labels"] is None
            continue
        expected = squares(i % 7)
        assert row["labels"] == expected.labels.tolist()
        assert row["boxes_xyxy"] == expected.boxes_xyxy.tolist()
        assert row["rles"] == expected.rles
        assert row["track_ids"] == (list(range(100, 100 + i % 7)) if i % 2 == 0 else None)


def test_a_shard_of_failures_only_keeps_the_schema() -> None:
    table = table_of(failed_row(an_entry(), a_frame(size_hw=None), ItemFailure("decode", "X", "y")))
    assert table.schema.equals(schema_named("segments", "segments.v1"), check_metadata=True)


def test_results_for_another_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match="results are for an image of"):
        ok_row(an_entry(), a_frame(size_hw=(10, 10)), squares(1))


def test_rows_know_about_how_much_memory_they_hold() -> None:
    small, large = (ok_row(an_entry(), a_frame(), squares(n)) for n in (0, 8))
    assert 0 < small.nbytes < large.nbytes
    masks = dataclasses.replace(squares(1), rles=[bytes(100_000)])
    assert dataclasses.replace(large, found=masks).nbytes > 100_000


def test_processing_time_is_utc() -> None:
    before = dt.datetime.now(dt.UTC)
    moment = table_of(ok_row(an_entry(), a_frame(), squares(1)))["processed_at"][0].as_py()
    assert moment.utcoffset() == dt.timedelta(0)
    assert before - dt.timedelta(milliseconds=1) <= moment <= dt.datetime.now(dt.UTC)


def test_numbers_of_any_kind_of_array_are_cast() -> None:
    found = squares(2)
    wide = dataclasses.replace(
        found, labels=found.labels.astype(np.int64), scores=found.scores.astype(np.float64), is_thing=np.array([1, 0])
    )
    row = table_of(ok_row(an_entry(), a_frame(), wide)).to_pylist()[0]
    assert row["labels"] == [1, 2]
    assert row["is_thing"] == [True, False]
