from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BucketMissing
from infra.store import Store, open_store
from tasks.output.layout import part_key
from tasks.output.schema import COMMON
from tasks.output.views import describe_views, open_views, views_of
from tests.tasks.output.fake_output import START, FakeOutput, Item, divide, heavy_part


def ask(store: Store, sql: str, *, native: bool = True) -> list[tuple[Any, ...]]:
    connection = open_views(store.uri, native=native)
    try:
        return connection.sql(sql).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("native", [True, False], ids=["duckdb reads", "store reads"])
class TestViews:
    def test_items_has_a_row_for_every_item_also_the_failed(self, filled: FakeOutput, native: bool) -> None:
        assert ask(filled.store, "SELECT status, count(*) FROM items GROUP BY ALL ORDER BY ALL", native=native) == [
            ("failed", 1),
            ("ok", 16),
        ]

    def test_instances_zips_the_lists_of_an_item(self, filled: FakeOutput, native: bool) -> None:
        items = ask(
            filled.store,
            "SELECT uri, frame, labels, names, scores, boxes_xyxy, areas, rles, is_thing, track_ids, width, height"
            " FROM items WHERE status = 'ok' ORDER BY uri, frame",
            native=native,
        )
        instances = ask(
            filled.store,
            "SELECT uri, frame, instance, label, name, score, [x0, y0, x1, y1], area, rle, is_thing, track_id, width,"
            " height FROM instances ORDER BY uri, frame, instance",
            native=native,
        )
        assert instances == [expected for item in items for expected in by_hand(item)]
        assert len(instances) == 48

    def test_failures_name_stage_and_reason(self, filled: FakeOutput, native: bool) -> None:
        assert ask(filled.store, "SELECT uri, stage, error_type, error FROM failures", native=native) == [
            ("s3://pictures/broken.jpg", "decode", "Unreadable", "cannot identify image file")
        ]


def by_hand(item: Sequence[Any]) -> list[tuple[Any, ...]]:
    uri, frame, labels, names, scores, boxes, areas, rles, is_thing, tracks, width, height = item
    tracks = tracks or [None] * len(labels)
    found = zip(labels, names, scores, boxes, areas, rles, is_thing, tracks, strict=True)
    return [(uri, frame, index, *values, width, height) for index, values in enumerate(found)]


class TestLatest:
    def test_a_changed_object_is_shown_with_its_newest_rows_and_history_stays(self, filled: FakeOutput) -> None:
        filled.commit([Item("s3://pictures/03.jpg", etag="e2", num_instances=1)])
        assert ask(filled.store, "SELECT etag, len(labels) FROM items WHERE uri LIKE '%/03.jpg'") == [("e2", 1)]
        assert ask(filled.store, "SELECT count(*) FROM items") == [(17,)]
        assert ask(filled.store, "SELECT count(*) FROM all_items") == [(18,)]
        assert ask(filled.store, "SELECT count(*) FROM instances WHERE uri LIKE '%/03.jpg'") == [(1,)]

    def test_a_retried_failure_is_no_failure_any_more(self, filled: FakeOutput) -> None:
        filled.commit([Item("s3://pictures/broken.jpg")])
        assert ask(filled.store, "SELECT count(*) FROM failures") == [(0,)]
        assert ask(filled.store, "SELECT status FROM items WHERE uri LIKE '%broken%'") == [("ok",)]

    def test_the_tail_of_a_longer_old_video_does_not_live_on(self, filled: FakeOutput) -> None:
        clip = "s3://pictures/clip.mp4"
        filled.commit([Item(clip, etag="e2", frame=frame, pts_s=frame / 4) for frame in range(2)])
        assert ask(filled.store, f"SELECT frame, etag FROM items WHERE uri = '{clip}' ORDER BY 1") == [
            (0, "e2"),
            (1, "e2"),
        ]

    def test_a_retried_frame_leaves_the_other_frames_of_the_same_bytes(self, output: FakeOutput) -> None:
        clip = [Item("clip", frame=frame, pts_s=float(frame)) for frame in range(3)]
        output.commit([*clip, Item("clip", frame=3, pts_s=3.0, status="failed")])
        output.commit([Item("clip", frame=3, pts_s=3.0)])
        assert ask(output.store, "SELECT frame, status FROM items ORDER BY 1") == [(n, "ok") for n in range(4)]

    def test_the_plan_decides_not_the_clock(self, filled: FakeOutput) -> None:
        filled.moment = START.replace(year=2001)  # the machine of the second plan is decades late
        filled.commit([Item("s3://pictures/03.jpg", etag="e2")])
        assert ask(filled.store, "SELECT etag FROM items WHERE uri LIKE '%/03.jpg'") == [("e2",)]

    def test_the_third_plan_beats_the_second(self, filled: FakeOutput) -> None:
        for etag in ("e2", "e3"):
            filled.commit([Item("s3://pictures/03.jpg", etag=etag), Item(f"new-{etag}")])
        assert ask(filled.store, "SELECT etag FROM items WHERE uri LIKE '%/03.jpg'") == [("e3",)]
        assert ask(filled.store, "SELECT count(*), count(DISTINCT (uri, frame)) FROM items") == [(19, 19)]


class TestVersions:
    def test_items_shows_the_newest_version_and_all_items_every_one(self, filled: FakeOutput) -> None:
        newer = filled.new_version(score_threshold=0.9)
        newer.commit([Item("s3://pictures/00.jpg")])
        assert ask(filled.store, "SELECT version, count(*) FROM items GROUP BY 1") == [(newer.version.fingerprint, 1)]
        assert dict(ask(filled.store, "SELECT version, count(*) FROM all_items GROUP BY 1")) == {
            filled.version.fingerprint: 17,
            newer.version.fingerprint: 1,
        }

    def test_an_old_version_that_gets_a_new_plan_is_the_newest_again(self, filled: FakeOutput) -> None:
        newer = filled.new_version(score_threshold=0.9)
        newer.commit([Item("a")])
        filled.moment = newer.moment.replace(year=2030)
        filled.commit([Item("b")])
        assert ask(filled.store, "SELECT DISTINCT version FROM items") == [(filled.version.fingerprint,)]

    def test_a_version_with_a_plan_and_no_rows_yet_hides_nothing(self, filled: FakeOutput) -> None:
        filled.new_version(score_threshold=0.9).commit([Item("a")], leave_open=1)
        assert ask(filled.store, "SELECT count(*) FROM items") == [(17,)]

    def test_measured_qualities_are_shown_and_null_in_versions_that_have_none(self, filled: FakeOutput) -> None:
        newer = replace(filled.new_version(), measured=True)
        newer.commit([Item("a", stability=0.75, num_instances=2), Item("b", num_instances=1)])
        newer.commit([Item("c", stability=0.25, num_instances=1)])
        sql = "SELECT uri, instance, q_stability, q_tta FROM instances ORDER BY ALL"
        assert ask(filled.store, sql) == [
            ("a", 0, 0.75, None), ("a", 1, 0.75, None), ("b", 0, None, None), ("c", 0, 0.25, None),
        ]  # fmt: skip
        old, new = filled.version.fingerprint, newer.version.fingerprint
        sql = "SELECT version, count(q_stability), count(*) FROM all_items GROUP BY version"
        assert sorted(ask(filled.store, sql)) == sorted([(old, 0, 17), (new, 2, 3)])


class TestEveryMoment:
    @pytest.fixture
    def empty(self, tmp_path: Path) -> FakeOutput:
        """An output of which nothing is committed yet."""
        output = FakeOutput(open_store(str(tmp_path / "empty")))
        output.commit([Item("a.jpg")], leave_open=1)
        return output

    def test_an_empty_output_has_views_without_rows(self, empty: FakeOutput) -> None:
        for view in views_of(empty.store).names:
            assert ask(empty.store, f"SELECT count(*) FROM {view}") == [(0,)]

    def test_an_empty_output_and_a_full_one_have_the_same_columns(self, empty: FakeOutput, filled: FakeOutput) -> None:
        both = views_of(empty.store), views_of(filled.store)
        assert describe_views(both[0]) == describe_views(both[1])
        assert both[0].names == ("items", "instances", "failures", "all_items")
        for view in both[0].names:
            types = [views.connection.sql(f"SELECT * FROM {view} LIMIT 0").types for views in both]
            assert types[0] == types[1]

    def test_a_place_that_does_not_exist_is_said_to_be_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BucketMissing, match="nowhere"):
            open_views(str(tmp_path / "nowhere"))

    def test_during_a_run_only_committed_shards_are_seen(self, output: FakeOutput) -> None:
        items = [Item(f"{index}.jpg") for index in range(4)]
        ids = output.commit(items, num_shards=2, leave_open=1)
        before = open_views(output.store.uri)
        assert before.sql("SELECT count(*) FROM items").fetchall() == [(2,)]
        output.commit_shard(ids[1], divide(items, 2)[1])
        assert before.sql("SELECT count(*) FROM items").fetchall() == [(2,)], "a connection keeps its list of files"
        assert ask(output.store, "SELECT count(*) FROM items") == [(4,)]

    def test_strangers_among_the_parts_are_not_read(self, filled: FakeOutput) -> None:
        prefix = part_key(filled.version, "x").rpartition("/")[0]
        filled.store.put(f"{prefix}/part-half.parquet.tmp-1234", b"PAR1 torn")
        filled.store.put(f"{prefix}/notes.txt", b"hello")
        assert ask(filled.store, "SELECT count(*) FROM items") == [(17,)]

    @pytest.mark.parametrize("name", ["a b", "we[i]rd", "st*r", "qu'ote", "per%20cent", "ünï", "h#sh?"])
    def test_the_name_of_the_output_is_data(self, tmp_path: Path, name: str) -> None:
        store = open_store(str(tmp_path / name))
        FakeOutput(store).commit([Item("a.jpg")])
        assert ask(store, "SELECT count(*) FROM items") == [(1,)]

    def test_cursors_of_a_connection_see_the_views_and_functions(self, filled: FakeOutput) -> None:
        cursor = open_views(filled.store.uri).cursor()
        assert cursor.sql("SELECT count(*) FROM instances WHERE mask_area(rle) <> area").fetchall() == [(0,)]

    def test_items_without_instances_and_models_without_masks_or_tracks(self, output: FakeOutput) -> None:
        output.commit([Item("empty.jpg", num_instances=0), Item("boxes.jpg", num_instances=2, masks=False)])
        assert ask(output.store, "SELECT uri, instance, rle, track_id FROM instances ORDER BY 2") == [
            ("boxes.jpg", 0, None, None),
            ("boxes.jpg", 1, None, None),
        ]


def test_what_does_not_fit_into_memory_goes_to_disk_and_leaves_nothing_behind(
    filled: FakeOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tasks.output.views.tempfile.gettempdir", lambda: str(scratch))
    monkeypatch.setattr("tasks.output.views.MEMORY_SHARE", "150MB")
    connection = open_views(filled.store.uri)
    connection.execute("SET threads = 1")
    rows = connection.execute(
        "SELECT count(*) FROM "
        "(SELECT md5(i::VARCHAR) AS m, row_number() OVER (ORDER BY m) AS r FROM range(3000000) t(i)) WHERE r > 5"
    ).fetchall()
    assert rows == [(2999995,)]
    assert list(scratch.rglob("*")), "something was spilled"
    connection.close()
    assert not list(scratch.iterdir())


class TestPruning:
    """Bytes that cross the wire; masks are most of a file, and most queries never name them."""

    @pytest.fixture
    def heavy(self, output: FakeOutput) -> FakeOutput:
        """One part of 8 row groups of 1,000 items with 4 masks of 1 kB each: 33 MB."""
        data = heavy_part(output.version, "s", 8000, 1000, 1000)
        output.store.put(part_key(output.version, "s"), data)
        return output

    def bytes_read(self, output: FakeOutput, sql: str) -> int:
        views = views_of(output.store, native=False)
        views.connection.sql(sql).fetchall()
        assert views.filesystem is not None
        return views.filesystem.bytes_read

    @pytest.mark.parametrize("view", ["all_items", "items", "instances"])
    def test_a_query_over_names_does_not_read_masks(self, heavy: FakeOutput, view: str) -> None:
        name, mask = ("name", "octet_length(rle)") if view == "instances" else ("names[1]", "octet_length(rles[1])")
        narrow = self.bytes_read(heavy, f"SELECT {name}, count(*) FROM {view} GROUP BY 1")
        full = self.bytes_read(heavy, f"SELECT sum({mask}) FROM {view}")
        assert full > 32_000_000
        # DuckDB reads ahead 1 MB per list column and row group where the store is not a disk; exact for big row groups
        assert narrow < 0.6 * full
        assert self.bytes_read(heavy, f"SELECT count(*) FROM {view} WHERE media = 'video'") < 0.02 * full

    def test_a_filter_on_uri_reads_one_row_group(self, heavy: FakeOutput) -> None:
        full = self.bytes_read(heavy, "SELECT sum(octet_length(rle)) FROM instances")
        one = self.bytes_read(heavy, "SELECT sum(octet_length(rle)) FROM instances WHERE uri = '04321'")
        assert one < 0.25 * full

    def test_all_columns_that_every_product_has_are_in_failures(self, filled: FakeOutput) -> None:
        columns = describe_views(views_of(filled.store))["failures"]
        assert columns == [field.name for field in COMMON] + ["version"]


@pytest.mark.s3
def test_a_bucket_is_read_through_the_store_with_the_same_answers(s3_bucket: str, tmp_path: Path) -> None:
    answers = []
    for uri in (f"{s3_bucket}/o u#t%20", str(tmp_path / "out")):
        output = FakeOutput(open_store(uri))
        output.commit([Item(f"{n:02d}.jpg") for n in range(6)] + [Item("bad.jpg", status="failed")], num_shards=2)
        output.commit([Item("bad.jpg"), Item("03.jpg", etag="e2", num_instances=1)])
        columns = "uri, etag, label, name, score, area, rle"
        rows = ask(output.store, f"SELECT {columns} FROM instances WHERE mask_area(rle) = area ORDER BY ALL")
        answers.append((rows, ask(output.store, "SELECT count(*) FROM failures")))
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == 19
