"""One open plan per version, the anti-join, and the refusal of other versions: in a folder and on S3 alike."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra.errors import StoreError, StoreUnavailable, UsageError, VersionMismatch
from infra.store import Store, open_store
from tasks.ingest import plan as plan_module
from tasks.ingest import selection
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, PlanOptions, committed_shards, load_plan, open_plan
from tasks.output.layout import part_key, plan_key, plans_prefix
from tasks.records import Shard, Version, etag_to_pin
from tests.tasks.ingest.helpers import commit, fill, listing, planned, tar_of, version_of
from tests.tasks.media.test_video_index import CASES, write_video

SMALL = PlanOptions(shard_items=3, shard_bytes=3000)


def lines(*names: str, etag: str = "1", size: int = 1000) -> list[tuple[str, str, int]]:
    return [(f"s3://b/{name}.jpg", etag, size) for name in names]


@pytest.fixture
def output(store_uri: str) -> Store:
    store = open_store(store_uri)
    store.put("hello.txt", b"an output folder that exists")
    return store


def opened(
    output: Store, version: Version, folder: Path, items: list[tuple[str, str, int]], options: PlanOptions = SMALL
) -> Plan | None:
    return open_plan(output, version, listing(folder, items), options)


def test_the_first_plan_takes_everything_sorted_by_uri(output: Store, tmp_path: Path) -> None:
    version = version_of()
    plan = opened(output, version, tmp_path, lines("c", "a", "e", "b", "d", "ü", "a b#?%"))
    assert plan is not None
    assert (plan.number, plan.joined, plan.num_entries, plan.num_objects, plan.total_bytes) == (1, False, 7, 7, 7000)
    assert planned(plan) == sorted(uri for uri, _, _ in lines("c", "a", "e", "b", "d", "ü", "a b#?%"))
    shards = list(plan.shards())
    assert [shard.index for shard in shards] == list(range(plan.num_shards)) == [0, 1, 2]
    assert {shard.shard_id for shard in shards} == plan.shard_ids()
    assert sum(shard.work for shard in shards) == plan.total_work == 7000
    assert [info.key for info in output.list(plans_prefix(version))] == [plan_key(version, 1)]


def test_shards_can_be_skipped(output: Store, tmp_path: Path) -> None:
    plan = opened(output, version_of(), tmp_path, lines(*"abcdefg"))
    assert plan is not None
    first, *rest = plan.shards()
    assert list(plan.shards(skip={first.shard_id})) == rest
    assert list(plan.shards(skip=plan.shard_ids())) == []


def test_nothing_new_is_no_plan(output: Store, tmp_path: Path) -> None:
    version = version_of()
    plan = opened(output, version, tmp_path, lines(*"abcd"))
    assert plan is not None
    assert plan.committed() == set()
    commit(plan)
    assert plan.committed(output) == plan.shard_ids()
    assert opened(output, version, tmp_path, lines(*"abcd")) is None
    assert opened(output, version, tmp_path, lines(*"ab")) is None


def test_only_what_is_new_or_changed_is_planned_again(output: Store, tmp_path: Path) -> None:
    version = version_of()
    first = opened(output, version, tmp_path, lines(*"abcd"))
    assert first is not None
    commit(first)
    second = opened(output, version, tmp_path, [*lines(*"ad"), *lines("b", etag="2"), *lines("new")])
    assert planned(second) == ["s3://b/b.jpg", "s3://b/new.jpg"]
    assert second is not None
    assert second.number == 2
    assert not second.shard_ids() & first.shard_ids()
    commit(second)
    back = opened(output, version, tmp_path, lines(*"abcd", "new"))
    assert planned(back) == ["s3://b/b.jpg"], "an object that went back to its first state is newest in its second"


def test_an_open_plan_is_joined_whatever_the_own_listing_says(output: Store, tmp_path: Path) -> None:
    version = version_of()
    first = opened(output, version, tmp_path / "1", lines(*"abcdefg"))
    assert first is not None
    some = sorted(first.shard_ids())[0]
    commit(first, only={some})
    for options in (SMALL, PlanOptions(fresh=True), PlanOptions(retry_failed=True), PlanOptions(shard_items=1)):
        joined = opened(output, version, tmp_path / "2", lines("x", "a", etag="9"), options)
        assert joined is not None
        assert (joined.number, joined.joined) == (1, True)
        assert list(joined.shards()) == list(first.shards())
        assert joined.committed() == {some}
    commit(first)
    after = opened(output, version, tmp_path / "2", lines("x", "a", etag="9"))
    assert planned(after) == ["s3://b/a.jpg", "s3://b/x.jpg"]


def test_a_lost_part_is_planned_again(output: Store, tmp_path: Path) -> None:
    version = version_of()
    first = opened(output, version, tmp_path, lines(*"abcdefg"))
    assert first is not None
    commit(first)
    second = opened(output, version, tmp_path, lines(*"abcdefg", "h"))
    assert second is not None
    commit(second)
    lost = next(first.shards())
    output.delete(part_key(version, lost.shard_id))
    third = opened(output, version, tmp_path, lines(*"abcdefg", "h"))
    assert planned(third) == [entry.uri for entry in lost.entries]


def test_fresh_takes_everything_again_under_new_names(output: Store, tmp_path: Path) -> None:
    version = version_of()
    first = opened(output, version, tmp_path, lines(*"abcd"))
    assert first is not None
    commit(first)
    again = opened(output, version, tmp_path, lines(*"abcd"), PlanOptions(fresh=True, shard_items=3, shard_bytes=3000))
    assert planned(again) == planned(first)
    assert again is not None
    assert not again.shard_ids() & first.shard_ids()


def test_retry_takes_exactly_the_items_whose_latest_row_failed(output: Store, tmp_path: Path) -> None:
    version = version_of()
    retry = PlanOptions(retry_failed=True)
    assert opened(output, version, tmp_path, lines(*"abcdef"), retry) is None, "nothing failed yet"
    first = opened(output, version, tmp_path, lines(*"abcdef"))
    assert first is not None
    commit(first, failing=frozenset({"s3://b/b.jpg", "s3://b/e.jpg", "s3://b/f.jpg"}))
    second = opened(output, version, tmp_path, [*lines(*"abcdf"), *lines("new")], retry)
    assert planned(second) == ["s3://b/b.jpg", "s3://b/f.jpg"], "e is not in the inventory any more, new has not failed"
    assert second is not None
    commit(second, failing=frozenset({"s3://b/f.jpg"}))
    third = opened(output, version, tmp_path, lines(*"abcdef"), retry)
    assert planned(third) == ["s3://b/e.jpg", "s3://b/f.jpg"]
    assert third is not None
    commit(third)
    assert opened(output, version, tmp_path, lines(*"abcdef"), retry) is None
    assert opened(output, version, tmp_path, lines(*"abcdef")) is None, "failures are not new"


def test_drivers_at_once_end_with_the_same_plan(output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = version_of()
    barrier = threading.Barrier(3)
    make = plan_module._make

    def make_and_wait(*args: object) -> bool:
        made = make(*args)  # type: ignore[arg-type]
        barrier.wait(timeout=60)  # every driver has its own plan ready before the first is put
        return made

    monkeypatch.setattr(plan_module, "_make", make_and_wait)
    plans: list[Plan | None] = []

    def drive(number: int) -> None:
        items = lines(*"abcdefg", f"only driver {number} saw this")
        plans.append(opened(open_store(output.uri), version, tmp_path / str(number), items))

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 3
    assert sorted(plan.joined for plan in plans if plan is not None) == [False, True, True]
    shards: list[list[Shard]] = [list(plan.shards()) for plan in plans if plan is not None]
    assert shards[0] == shards[1] == shards[2]
    assert len(list(output.list(plans_prefix(version)))) == 1


def test_another_version_is_refused_with_every_difference(output: Store, tmp_path: Path) -> None:
    first = opened(output, version_of(stride=1, threshold=0.5), tmp_path, lines("a"))
    assert first is not None
    other = version_of(model="big@2", stride=5, threshold=0.5, extra="on")
    with pytest.raises(VersionMismatch) as caught:
        opened(output, other, tmp_path, lines("a"))
    for part in (
        "model: tiny@1 here, big@2 asked for",
        "stride: 1 here, 5 asked for",
        "extra: not set here, on asked for",
    ):
        assert part in caught.value.message
    assert "threshold" not in caught.value.message
    assert "--new-version" in caught.value.hint
    beside = opened(output, other, tmp_path, lines("a"), PlanOptions(new_version=True))
    assert beside is not None
    assert (beside.number, beside.joined) == (1, False)
    for version in (other, first.version):  # both are at home here now
        again = opened(output, version, tmp_path, lines("a"))
        assert again is not None
        assert again.joined
    assert committed_shards(output, other) == set()


def test_a_damaged_plan_is_one_clear_error(output: Store, tmp_path: Path) -> None:
    version = version_of()
    output.put(plan_key(version, 1), b"no parquet")
    with pytest.raises(StoreError, match="damaged"):
        opened(output, version, tmp_path, lines("a"))
    with pytest.raises(VersionMismatch, match="cannot be read"):
        opened(output, version_of(other=1), tmp_path, lines("a"))


def test_a_uri_that_is_listed_twice_is_planned_once(output: Store, tmp_path: Path) -> None:
    items = [*lines("b", etag="2"), *lines("a", "b", "b", "c"), *lines("b", etag="3")]
    plan = opened(output, version_of(), tmp_path, items)
    assert planned(plan) == ["s3://b/a.jpg", "s3://b/b.jpg", "s3://b/c.jpg"]
    assert plan is not None
    assert plan.total_bytes == 3000


def test_of_a_member_that_is_twice_in_a_tar_the_last_is_taken(store_uri: str, tmp_path: Path) -> None:
    twice = tar_of({"x.jpg": b"old"})[:1024] + tar_of({"x.jpg": b"newer"})
    source = fill(f"{store_uri}/in", {"t.tar": twice})
    inventory = take_inventory(source.uri, folder=tmp_path)
    fill(f"{store_uri}/out", {"x": b"1"})
    plan = open_plan(open_store(f"{store_uri}/out"), version_of(), inventory, SMALL)
    assert plan is not None
    [entry] = next(plan.shards()).entries
    assert entry.offset is not None
    assert entry.length is not None
    assert source.read_range("t.tar", entry.offset, entry.length, etag=etag_to_pin(entry)) == b"newer"


@pytest.mark.parametrize("in_tar", [False, True])
def test_a_long_video_is_cut_into_shards_at_keyframes(store_uri: str, tmp_path: Path, in_tar: bool) -> None:
    video = write_video(tmp_path / "v.mp4", **CASES["b-frames.mp4"]).read_bytes()
    objects = {"t.tar": tar_of({"a.jpg": b"1", "v.mp4": video})} if in_tar else {"v.mp4": video, "a.jpg": b"1"}
    fill(f"{store_uri}/in", {**objects, "broken.mkv": b"no video"})
    inventory = take_inventory(f"{store_uri}/in", folder=tmp_path / "work")
    output = fill(f"{store_uri}/out", {"x": b"1"})
    options = PlanOptions(shard_items=100, shard_bytes=100_000, video_frames=50)
    plan = open_plan(output, version_of(), inventory, options)
    assert plan is not None
    entries = [entry for shard in plan.shards() for entry in shard.entries]
    pieces = [entry for entry in entries if entry.uri.endswith("v.mp4")]
    assert [(piece.first_frame, piece.end_frame) for piece in pieces] == [(0, 64), (64, 128), (128, None)]
    assert len({(piece.uri, piece.etag, piece.offset, piece.length) for piece in pieces}) == 1
    assert plan.num_shards >= 3
    assert (plan.num_entries, plan.num_objects) == (5, 3)
    broken = next(entry for entry in entries if entry.uri.endswith("broken.mkv"))
    assert (broken.first_frame, broken.end_frame, broken.first_pts) == (0, None, None)
    commit(plan)
    assert open_plan(output, version_of(), inventory, options) is None


def test_a_problem_found_by_the_listing_travels_in_the_plan(store_uri: str, tmp_path: Path) -> None:
    fill(f"{store_uri}/in", {"t.tar": tar_of({"a.jpg": b"1", "film.mp4": b"2"})[:1500]})
    output = fill(f"{store_uri}/out", {"x": b"1"})
    inventory = take_inventory(f"{store_uri}/in", folder=tmp_path)
    plan = open_plan(output, version_of(), inventory, SMALL)
    assert plan is not None
    problems = {entry.uri.rpartition("!/")[2]: entry.problem for shard in plan.shards() for entry in shard.entries}
    assert problems["a.jpg"] is None
    assert "ends inside" in str(problems["@1024"])


def test_a_plan_is_loaded_by_its_number(output: Store, tmp_path: Path) -> None:
    version = version_of()
    plan = opened(output, version, tmp_path, lines(*"abcd"))
    assert plan is not None
    loaded = load_plan(output, version, 1)
    assert (loaded.num_shards, loaded.created_at, loaded.source) == (plan.num_shards, plan.created_at, plan.source)


@pytest.mark.parametrize(
    "options", [{"shard_items": 0}, {"shard_bytes": -1}, {"video_frames": 0}, {"retry_failed": True, "fresh": True}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PlanOptions(**options)  # type: ignore[arg-type]


def test_a_damaged_part_is_named_when_failures_are_looked_for(output: Store, tmp_path: Path) -> None:
    version = version_of()
    plan = opened(output, version, tmp_path, lines(*"abcdefg"))
    assert plan is not None
    commit(plan)
    victim = sorted(plan.shard_ids())[0]
    output.put(part_key(version, victim), b"PAR1 no more")
    with pytest.raises(StoreError, match=f"part-{victim}.parquet is damaged"):
        opened(output, version, tmp_path, lines(*"abcdefg"), PlanOptions(retry_failed=True))


def test_a_store_that_fails_while_the_plan_is_made_is_reported_as_what_it_is(
    output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of()
    plan = opened(output, version, tmp_path, lines(*"abcd"))
    assert plan is not None
    commit(plan)

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("503 from the store")

    monkeypatch.setattr(selection, "_opened", unavailable)
    with pytest.raises(StoreUnavailable, match="503"):
        opened(output, version, tmp_path, lines(*"abcde"))
