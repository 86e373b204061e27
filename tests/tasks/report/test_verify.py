from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UsageError
from infra.store import Store, open_store
from tasks.output.encoding import write_parquet
from tasks.output.layout import make_version, part_key, plan_key
from tasks.products.segments import PRODUCT
from tasks.report.verify import VerifyReport, verify
from tests.tasks.output.fake_output import FakeOutput, Item, plan_bytes


def check(output: FakeOutput, **options: bool) -> VerifyReport:
    return verify(output.store.uri, **options)


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_output_has_no_problems(store_uri: str, deep: bool) -> None:
    output = FakeOutput(open_store(store_uri))
    items = [Item(f"{n:02d}.jpg") for n in range(7)] + [Item("broken.jpg", status="failed")]
    items += [Item("killer.jpg", status="quarantined"), Item("none.jpg", num_instances=0)]
    items += [Item("clip.mp4", frame=frame, pts_s=frame / 4, track=True) for frame in range(4)]
    output.commit(items, num_shards=3)
    output.commit([Item("broken.jpg", masks=False), Item("00.jpg", etag="e2")])
    output.new_version(score_threshold=0.9).commit([Item("00.jpg")])
    report = check(output, deep=deep)
    assert report.problems == ()
    assert (report.num_versions, report.num_plans, report.num_shards, report.open_shards) == (2, 3, 5, 0)
    assert (report.num_rows, report.num_ok, report.num_failed, report.num_quarantined) == (17, 15, 1, 1)


@pytest.mark.parametrize("rubbish", ["notes.txt", "depths/rubbish.txt", "segments/rubbish.txt", "_plans/rubbish"])
def test_a_place_that_is_no_output_is_refused_whatever_lies_there(tmp_path: Path, rubbish: str) -> None:
    open_store(str(tmp_path)).put(rubbish, b"nothing of ours")
    with pytest.raises(UsageError, match="holds no results of a job"):
        verify(str(tmp_path))


def test_a_product_that_does_not_exist_or_is_not_there_is_refused_by_name(output: FakeOutput) -> None:
    output.commit([Item("a.jpg")])
    with pytest.raises(UsageError, match="there is no product 'depths'"):
        verify(output.store.uri, product="depths")


def test_an_output_of_a_product_that_is_not_installed_is_refused_by_its_name(output: FakeOutput) -> None:
    version = make_version("depths", model="m@1", model_digest="0" * 64, parameters={}, schema="depths.v1")
    output.store.put(plan_key(version, 1), plan_bytes(version, 1, output.moment, ["a"], [[Item("a.jpg")]]))
    with pytest.raises(UsageError, match="there is no product 'depths'"):
        verify(output.store.uri)


def test_an_output_of_which_nothing_is_committed_yet_is_open(output: FakeOutput) -> None:
    output.commit([Item("a.jpg")], leave_open=1)
    report = check(output)
    assert (report.open_shards, report.num_rows) == (1, 0)
    assert "plan 1 is not complete" in report.problems[0]


@pytest.fixture
def one(output: FakeOutput) -> tuple[FakeOutput, str]:
    """One shard of three pictures and a video of five frames, and the key of its part."""
    items = [Item(f"{n}.jpg") for n in range(3)]
    items += [Item("clip.mp4", frame=frame, pts_s=float(frame)) for frame in range(5)]
    (shard_id,) = output.commit(items)
    assert check(output, deep=True).problems == ()
    return output, part_key(output.version, shard_id)


def rewrite(store: Store, key: str, change: Callable[[list[dict[str, Any]]], object], **footer: str) -> None:
    """Replace a part by one with changed rows and the footer that it had (but for what is given)."""
    old = pq.ParquetFile(io.BytesIO(store.get(key)))
    rows = old.read().to_pylist()
    change(rows)
    kept = {k.decode(): v.decode() for k, v in old.metadata.metadata.items() if k.startswith(b"visionmill.")}
    table = pa.Table.from_pylist(rows, schema=old.schema_arrow)
    store.put(
        key, write_parquet(table, kept | {f"visionmill.{name}": value for name, value in footer.items()}, PRODUCT)
    )


def without_reason(rows: list[dict[str, Any]]) -> None:
    rows[0].update(status="failed")


CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "row lost": (lambda rows: rows.pop(1), "'1.jpg' must have one row, has 0"),
    "row twice": (lambda rows: rows.insert(1, rows[0]), "2 rows for '0.jpg', frame 0"),
    "row foreign": (lambda rows: rows.append(rows[-1] | {"uri": "zz"}), "a row for 'zz', which the plan does not have"),
    "order": (lambda rows: rows.reverse(), "rows are not sorted"),
    "etag": (lambda rows: rows[0].update(etag="e9"), "planned with etag e1, its row has e9"),
    "frame lost": (lambda rows: rows.pop(5), "frame 2 is missing before frame 3"),
    "end lost": (lambda rows: rows.pop(), "ends before frame 4 of 5 without a reason"),
    "frame beyond": (lambda rows: rows[-1].update(frame=9), "lie outside of the planned frames"),
    "all frames lost": (lambda rows: rows.__delitem__(slice(3, None)), "'clip.mp4' from frame 0: no row"),
    "no reason": (without_reason, "failed with stage, kind and error"),
    "other shard": (lambda rows: rows[0].update(shard_id="x"), "says shard x"),
    "status": (lambda rows: rows[0].update(status="meh"), "status 'meh'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_rows_are_found(one: tuple[FakeOutput, str], name: str) -> None:
    output, key = one
    change, says = CHANGES[name]
    rewrite(output.store, key, change)
    problems = check(output).problems
    assert any(says in problem and problem.startswith(key) for problem in problems), problems


def with_a_gap(rows: list[dict[str, Any]], first: int, last: int, told: int) -> None:
    """Frames ``first`` to ``last`` of the clip become one failed row, which says that they end at ``told``."""
    found = ("width", "height", "labels", "names", "scores", "boxes_xyxy", "areas", "rles", "is_thing", "track_ids")
    rows[3 + first].update(dict.fromkeys(found))
    error = f"frames {first} to {told} are missing, from 1.000 s to 2.000 s: the data were lost"
    rows[3 + first].update(status="failed", stage="decode", error_type="FramesMissing", error=error, notes=[])
    del rows[4 + first : 4 + last]


@pytest.mark.parametrize(
    ("last", "told", "says"),
    [(3, 3, ""), (4, 4, ""), (3, 2, "frame 3 is missing before frame 4"), (4, 3, "ends before frame 4 of 5 without a")],
)
def test_a_failed_row_stands_for_the_frames_that_it_names_and_for_no_others(
    one: tuple[FakeOutput, str], last: int, told: int, says: str
) -> None:
    output, key = one
    items = {"rows": 8 - (last - 1), "ok": 7 - (last - 1), "failed": 1, "quarantined": 0}
    rewrite(output.store, key, lambda rows: with_a_gap(rows, 1, last, told), items=json.dumps(items))
    problems = check(output, deep=True).problems
    assert [says in problem for problem in problems] == ([True] if says else []), problems


@pytest.mark.parametrize(
    ("footer", "says"),
    [
        ({"items": '{"rows": 8, "ok": 7, "failed": 1, "quarantined": 0}'}, "its footer counts 7 ok, it holds 8"),
        ({"plan": "2"}, "its footer says plan 2, its name and plan say 1"),
        ({"shard": "other"}, "its footer says shard other"),
        ({"schema": "segments.v0"}, "states schema 'segments.v0'"),
        ({"version": "{}"}, "cannot be read"),
    ],
)
def test_a_footer_that_lies_is_found(one: tuple[FakeOutput, str], footer: dict[str, str], says: str) -> None:
    output, key = one
    rewrite(output.store, key, lambda rows: None, **footer)
    assert any(says in problem for problem in check(output).problems)


DEEP: dict[str, tuple[dict[str, Any], str]] = {
    "other size": ({"width": 63}, "mask of 3072 pixels on 63x48"),
    "no mask": ({"rles": [b"hello, world"] * 3}, "not compressed COCO run lengths"),
    "fewer masks": ({"rles": []}, "rles is not as long as labels"),
    "no names": ({"names": None}, "names is not as long as labels"),
    "area": ({"areas": [1, 2, 3]}, "instance 0: area 1"),
    "score": ({"scores": [1.5, 0.5, 0.5]}, "scores outside of [0, 1]"),
}


@pytest.mark.parametrize("name", DEEP)
def test_the_deep_check_finds_masks_that_cannot_be(one: tuple[FakeOutput, str], name: str) -> None:
    output, key = one
    change, says = DEEP[name]
    rewrite(output.store, key, lambda rows: rows[0].update(change))
    assert check(output).problems == (), "only the deep check reads masks"
    problems = check(output, deep=True).problems
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "says"), [([1.5] * 3, "q_stability outside of [0, 1]"), ([0.5], "q_stability is not as long as labels")]
)
def test_the_deep_check_finds_qualities_that_cannot_be(tmp_path: Path, change: list[float], says: str) -> None:
    output = FakeOutput(open_store(str(tmp_path)), measured=True)
    output.commit([Item("a", stability=0.5), Item("b")])
    assert check(output, deep=True).problems == ()
    [key] = [info.key for info in output.store.list("segments/")]
    rewrite(output.store, key, lambda rows: rows[0].update(q_stability=change))
    assert any(says in problem for problem in check(output, deep=True).problems)


def test_the_deep_check_finds_stuff_that_shares_pixels_with_another_segment(one: tuple[FakeOutput, str]) -> None:
    output, key = one

    def cover(rows: list[dict[str, Any]]) -> None:
        row = rows[0]
        assert row["is_thing"] == [True, True, False]
        row["rles"][2], row["areas"][2] = row["rles"][0], row["areas"][0]

    rewrite(output.store, key, cover)
    (problem,) = check(output, deep=True).problems
    assert re.search(r"row of '0.jpg', frame 0: \d+ pixels of stuff belong to another segment, too", problem)


def test_a_flipped_byte_in_a_page_is_found_by_the_deep_check(one: tuple[FakeOutput, str]) -> None:
    output, key = one
    data = bytearray(output.store.get(key))
    footer = pq.ParquetFile(io.BytesIO(data)).metadata
    paths = {footer.row_group(0).column(i).path_in_schema: i for i in range(footer.num_columns)}
    chunk = footer.row_group(0).column(paths["rles.list.element"])
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 0xFF
    output.store.put(key, bytes(data))
    assert any("cannot be read" in problem for problem in check(output, deep=True).problems)


@pytest.mark.parametrize("size", [0.5, 0.99])
def test_a_truncated_part_is_a_problem_not_an_error(one: tuple[FakeOutput, str], size: float) -> None:
    output, key = one
    data = output.store.get(key)
    output.store.put(key, data[: int(len(data) * size)])
    (problem,) = check(output).problems
    assert problem.startswith(f"{key}: cannot be read")


def test_shards_that_are_not_committed_are_counted_and_named(output: FakeOutput) -> None:
    ids = output.commit([Item(f"{n}.jpg") for n in range(6)], num_shards=3, leave_open=1)
    report = check(output)
    assert (report.num_shards, report.open_shards, report.num_rows) == (3, 1, 4)
    assert report.problems[0].startswith(f"plan 1 is not complete: 1 shards are not committed ({ids[2]})")


def test_parts_without_a_plan_and_strangers_are_named(one: tuple[FakeOutput, str]) -> None:
    output, key = one
    stray = part_key(output.version, "feedfeedfeedfeed")
    output.store.put(stray, output.store.get(key))
    output.store.put("segments/notes.txt", b"hello")
    output.store.put("_plans/notes.txt", b"hello")
    assert sorted(check(output).problems) == [
        "_plans/notes.txt: an object among the plans that is none",
        "segments/notes.txt: an object among the parts that is none",
        f"{stray}: no plan asks for this shard",
    ]


def test_a_lost_or_damaged_plan_is_named(one: tuple[FakeOutput, str]) -> None:
    output, _ = one
    output.commit([Item("9.jpg")])
    output.store.delete(plan_key(output.version, 1))
    assert any("plan 1 is missing before it" in problem for problem in check(output).problems)
    output.store.put(plan_key(output.version, 1), b"PAR1 not really")
    assert any("is no readable plan" in problem for problem in check(output).problems)


def test_the_rows_a_stride_leaves_out_are_not_missed(output: FakeOutput) -> None:
    strided = replace(output, parameters={"frame_stride": 3})
    strided.commit([Item("clip.mp4", frame=frame, pts_s=float(frame)) for frame in (0, 3, 6)])
    assert check(strided).problems == ()


def test_a_break_in_a_video_ends_its_rows_with_a_reason(output: FakeOutput) -> None:
    whole = [Item("clip.mp4", frame=frame, pts_s=float(frame)) for frame in range(6)]
    (shard_id,) = output.commit(whole, leave_open=1)
    output.commit_shard(shard_id, [*whole[:3], replace(whole[3], status="failed")])
    assert check(output).problems == ()
