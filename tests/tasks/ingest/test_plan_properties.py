"""What holds for every listing: each entry once, even shards, names that depend on content and plan number alone."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store import open_store
from tasks.ingest import plan_entries, sharding
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import PlanOptions, open_plan
from tasks.ingest.sharding import ENTRY_SCHEMA, PLAN_SCHEMA, target_work, write_plan
from tests.tasks.ingest.helpers import commit, listing, planned, version_of
from tests.videos import make_video

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12
)
WORKS = st.lists(st.integers(1, 5000), min_size=1, max_size=300)


def entries_of(works: list[int], *, etag: str = "e") -> pa.RecordBatch:
    rows = [
        {"uri": f"{i:06d}", "etag": etag, "size_bytes": 7, "media": "image", "first_frame": 0, "work": work}
        for i, work in enumerate(works)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=ENTRY_SCHEMA)


def shard(works: list[int], target: int, *, number: int = 1, etag: str = "e", batch: int = 50) -> pa.Table:
    """The plan table for entries of these works, fed in small batches."""
    with tempfile.TemporaryDirectory() as folder:
        whole = entries_of(works, etag=etag)
        batches = [whole.slice(start, batch) for start in range(0, whole.num_rows, batch)]
        path = Path(folder) / "plan.parquet"
        writer, totals = write_plan(path, batches, number=number, fingerprint="f" * 16, target=target)
        writer.close()
        table = pq.read_table(path)
    assert table.schema.equals(PLAN_SCHEMA, check_metadata=False)
    assert (totals.num_entries, totals.total_work) == (len(works), sum(works))
    assert totals.num_shards == len(set(table["shard_id"].to_pylist()))
    return table


def by_shard(table: pa.Table) -> list[tuple[str, int, int]]:
    """(id, entries, work) of every shard, in order."""
    found: dict[str, list[int]] = {}
    for name, work in zip(table["shard_id"].to_pylist(), table["work"].to_pylist(), strict=True):
        found.setdefault(name, []).append(work)
    return [(name, len(works), sum(works)) for name, works in found.items()]


@pytest.fixture
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "ROW_GROUP_ROWS", 64)


@settings(max_examples=40)
@given(WORKS, st.integers(1, 20_000), st.sampled_from([1, 7, 50, 1000]))
@pytest.mark.usefixtures("small_row_groups")
def test_every_entry_is_in_one_shard_and_shards_are_even(works: list[int], shard_work: int, batch: int) -> None:
    target = target_work(sum(works), shard_work)
    table = shard(works, target, batch=batch)
    assert table["uri"].to_pylist() == [f"{i:06d}" for i in range(len(works))]
    assert table["position"].to_pylist() == list(range(len(works)))
    indices = table["shard_index"].to_pylist()
    assert sorted(set(indices)) == list(range(len(set(indices))))
    assert indices == sorted(indices)
    shards = by_shard(table)
    assert target <= shard_work
    for number, (_, _, work) in enumerate(shards):
        assert work < target + max(works)
        if number < len(shards) - 1 and max(works) < target:
            assert work > target - max(works)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 20_000))
def test_a_shard_holds_at_most_its_items_and_about_its_bytes(sizes: list[int], items: int, shard_bytes: int) -> None:
    floor = -(-shard_bytes // items)
    works = [max(size, floor) for size in sizes]
    table = shard(works, target_work(sum(works), floor * items))
    for _, count, work in by_shard(table):
        assert count <= items
        assert work <= floor * items + max(works)


@pytest.mark.parametrize(
    ("count", "slots", "shards"), [(3, 2, 1), (40, 2, 8), (40, 100, 10), (4000, 2, 16), (40, 0, 1)]
)
def test_a_small_plan_gives_every_slot_several_shards_of_some_images(
    tmp_path: Path, count: int, slots: int, shards: int
) -> None:
    inventory = listing(tmp_path, [(f"s3://b/{i:05d}.jpg", "e", 1000) for i in range(count)])
    (tmp_path / "out").mkdir()
    plan = open_plan(open_store(str(tmp_path / "out")), version_of(), inventory, PlanOptions(slots=slots))
    assert plan is not None and plan.num_shards == shards


@pytest.mark.parametrize(("cut_videos", "shards"), [(True, 6), (False, 1)])
def test_a_single_video_gives_every_slot_something_to_do(tmp_path: Path, cut_videos: bool, shards: int) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").write_bytes(make_video("mp4", "libx264", frames=160, gop=10))
    inventory = take_inventory(str(tmp_path / "in"), folder=tmp_path)
    options = PlanOptions(video_frames=160, slots=2, cut_videos=cut_videos)
    plan = open_plan(open_store(str(tmp_path / "out")), version_of(), inventory, options)
    assert plan is not None and plan.num_shards == shards


@settings(max_examples=25)
@given(WORKS, st.integers(100, 20_000), st.sampled_from([1, 7, 1000]))
@pytest.mark.usefixtures("small_row_groups")
def test_names_depend_on_content_and_plan_number_alone(works: list[int], shard_work: int, batch: int) -> None:
    target = target_work(sum(works), shard_work)
    names = [name for name, _, _ in by_shard(shard(works, target))]
    assert [name for name, _, _ in by_shard(shard(works, target, batch=batch))] == names
    assert not set(names) & {name for name, _, _ in by_shard(shard(works, target, number=2))}
    assert not set(names) & {name for name, _, _ in by_shard(shard(works, target, etag="changed"))}
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)


@settings(max_examples=6)
@given(st.lists(st.tuples(NAMES, st.integers(0, 9), st.integers(0, 300_000)), min_size=1, max_size=60), st.data())
def test_over_any_history_of_listings_each_state_of_an_object_is_planned_once(
    items: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "out").mkdir()
        output, version = open_store(str(folder / "out")), version_of()
        state = {f"s3://b/{name}": (f"s3://b/{name}", str(etag), size) for name, etag, size in items}
        first = open_plan(output, version, listing(folder / "l", list(state.values())), PlanOptions(shard_items=5))
        assert planned(first) == sorted(state)
        assert first is not None
        commit(first)
        changed = data.draw(st.sets(st.sampled_from(sorted(state))))
        lost = data.draw(st.sets(st.sampled_from(sorted(state)))) - changed
        now = {
            uri: (uri, "new " + etag if uri in changed else etag, n)
            for uri, etag, n in state.values()
            if uri not in lost
        }
        now["s3://b//added"] = ("s3://b//added", "1", 1)
        second = open_plan(output, version, listing(folder / "l", list(now.values())), PlanOptions(shard_items=5))
        assert planned(second) == sorted({*changed, "s3://b//added"})
    finally:
        shutil.rmtree(folder)


@pytest.mark.usefixtures("small_row_groups")
def test_the_plan_is_streamed_row_group_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_entries, "BATCH_ROWS", 100)
    (tmp_path / "out").mkdir()
    items = [(f"s3://b/{i:04d}.jpg", "1", 1000) for i in range(1000)]
    plan = open_plan(
        open_store(str(tmp_path / "out")),
        version_of(),
        listing(tmp_path, items),
        PlanOptions(shard_items=10, shard_bytes=10_000),
    )
    assert plan is not None
    file = pq.ParquetFile(tmp_path / "out" / plan.key)
    groups = [
        set(file.read_row_group(i, columns=["shard_id"])["shard_id"].to_pylist()) for i in range(file.num_row_groups)
    ]
    assert len(groups) > 5
    assert sum(map(len, groups)) == len(set().union(*groups)) == plan.num_shards == 100, "no shard spans two row groups"
    assert planned(plan) == [uri for uri, _, _ in items]
