"""What a SOURCE string names, against a folder and against a real S3 server alike."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.errors import AccessDenied, BucketMissing, DatasetError, StoreUnavailable, UsageError, VisionmillError
from infra.store import open_store
from infra.store_local_walk import LEADS_OUT
from tasks.ingest.inventory import take_inventory
from tasks.records import Entry, etag_to_pin
from tests.tasks.ingest.helpers import fill, listed, tar_of

AWKWARD = [
    "a b.jpg",
    "hash#1.png",
    "query?x=1.jpeg",
    "per%20cent.jpg",
    "plus+.jpg",
    "ünï/ç/日本.webp",
    ".hidden.jpg",
    ".dir/x.tif",
    "[brackets]{braces}*.jpg",
    "quote'\".jpg",
    "UPPER.JPG",
]


def test_a_folder_gives_its_images_and_videos_with_keys_untouched(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {name: b"x" * (i + 1) for i, name in enumerate([*AWKWARD, "v/film.MP4"])})
    inventory, lines = listed(store_uri, tmp_path / "work")
    assert [line["uri"] for line in lines] == sorted(store.uri_of(name) for name in [*AWKWARD, "v/film.MP4"])
    etags = {store.uri_of(info.key): info.etag for info in store.list()}
    assert {line["uri"]: line["etag"] for line in lines} == etags
    assert {line["media"] for line in lines if "film" in line["uri"]} == {"video"}
    assert (inventory.num_images, inventory.num_videos, inventory.num_problems) == (len(AWKWARD), 1, 0)
    assert inventory.total_bytes == sum(range(1, len(AWKWARD) + 2))


def test_a_backslash_in_a_local_name_is_kept(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "in"), {"back\\slash.jpg": b"1"})  # SeaweedFS itself makes a slash of it
    _, lines = listed(store.uri, tmp_path / "work")
    assert [line["uri"] for line in lines] == [store.uri_of("back\\slash.jpg")]


def test_what_is_left_out_of_a_folder_is_counted_with_a_reason(store_uri: str, tmp_path: Path) -> None:
    store = fill(
        store_uri,
        {"a.jpg": b"1", "notes.txt": b"1", "b/more.TXT": b"1", "README": b"1", "s.tar.gz": b"1", ".png": b"1"},
    )
    inventory, lines = listed(store_uri, tmp_path / "work")
    assert len(lines) == 1
    assert inventory.skipped["no image or video ending: .txt"] == 2
    assert inventory.skipped["no file name ending"] == 2
    assert sum(inventory.skipped.values()) == 5
    examples = inventory.skipped_examples["no image or video ending: .txt"]
    assert set(examples) == {store.uri_of("notes.txt"), store.uri_of("b/more.TXT")}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_is_a_folder_not_a_beginning_of_names(store_uri: str, tmp_path: Path, slash: str) -> None:
    store = fill(store_uri, {"photos/1.jpg": b"1", "photos/x/2.jpg": b"1", "photos2/3.jpg": b"1"})
    _, lines = listed(f"{store_uri}/photos{slash}", tmp_path / "work")
    assert [line["uri"] for line in lines] == [store.uri_of("photos/1.jpg"), store.uri_of("photos/x/2.jpg")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b?.jpg", "b1.jpg"]),
        ("b?.jpg", ["b?.jpg"]),  # a name that exists is itself, not a pattern
        ("[b]?.jpg", ["b?.jpg", "b1.jpg"]),
        ("**/*.jpg", ["a.jpg", "b?.jpg", "b1.jpg", "d/a.jpg", "d/e/#1.jpg"]),
        ("d/**", ["d/a.jpg", "d/clip.mkv", "d/e/#1.jpg"]),
        ("d/{a.jpg,clip.mkv}", ["d/a.jpg", "d/clip.mkv"]),
        ("{d,d/e}/*.jpg", ["d/a.jpg", "d/e/#1.jpg"]),
        ("{x}/1.png", ["{x}/1.png"]),
        ("{x}/*.png", ["{x}/1.png"]),
        ("d/e/#1.jpg", ["d/e/#1.jpg"]),
        ("d/clip.mkv", ["d/clip.mkv"]),
    ],
)
def test_globs_and_names(store_uri: str, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    names = ["a.jpg", "b?.jpg", "b1.jpg", "d/a.jpg", "d/e/#1.jpg", "d/clip.mkv", "{x}/1.png"]
    store = fill(store_uri, dict.fromkeys(names, b"1"))
    _, lines = listed(f"{store_uri}/{pattern}", tmp_path / "work")
    assert [line["uri"] for line in lines] == sorted(store.uri_of(name) for name in expected)


def test_tar_members_are_items_with_their_byte_ranges(store_uri: str, tmp_path: Path) -> None:
    members = {"0001.jpg": b"first", "0001.json": b"{}", "sub/0002.png": b"second!", "0003.mp4": b"video"}
    tar = tar_of(members)
    store = fill(
        store_uri, {"shards/a b-000.tar": tar, "shards/a b-001.tar": tar_of({"0004.jpg": b"4"}), "x.jpg": b"1"}
    )
    inventory, lines = listed(store_uri, tmp_path / "work")
    uri = store.uri_of("shards/a b-000.tar")
    etag = store.info("shards/a b-000.tar").etag
    inside = {line["uri"]: line for line in lines if line["container"] == uri}
    assert set(inside) == {f"{uri}!/0001.jpg", f"{uri}!/sub/0002.png", f"{uri}!/0003.mp4"}
    second = inside[f"{uri}!/sub/0002.png"]
    assert store.read_range("shards/a b-000.tar", second["offset"], second["length"]) == b"second!"
    assert second["etag"] == f"{etag}:{second['offset']}:{second['length']}"
    assert etag_to_pin(Entry(**second)) == etag
    assert (inventory.num_images, inventory.num_videos) == (4, 1)
    assert inventory.skipped == {"tar member: no image or video ending: .json": 1}


def test_a_broken_tar_keeps_its_members_up_to_the_break_and_one_line_that_says_why(
    store_uri: str, tmp_path: Path
) -> None:
    whole = tar_of({"1.jpg": b"a" * 900, "2.jpg": b"b" * 900, "3.jpg": b"c" * 900})
    store = fill(store_uri, {"t.tar": whole[:4000], "ok.tar": tar_of({"9.jpg": b"9"})})
    inventory, lines = listed(store_uri, tmp_path / "work")
    uri = store.uri_of("t.tar")
    problems = [line for line in lines if line["problem"]]
    assert [line["uri"] for line in problems] == [f"{uri}!/3.jpg"]
    assert "ends inside the member '3.jpg'" in problems[0]["problem"]
    assert {line["uri"] for line in lines} >= {f"{uri}!/1.jpg", f"{uri}!/2.jpg", store.uri_of("ok.tar") + "!/9.jpg"}
    assert (inventory.num_images, inventory.num_problems) == (3, 1)


def test_of_members_with_one_name_the_last_is_an_item_and_the_others_are_counted(
    store_uri: str, tmp_path: Path
) -> None:
    once, again = tar_of({"a.jpg": b"old", "b.jpg": b"b"}), tar_of({"a.jpg": b"newer"})
    store = fill(store_uri, {"t.tar": once[: 4 * 512] + again})
    inventory, lines = listed(store_uri, tmp_path / "work")
    assert [(line["uri"], line["length"]) for line in lines] == [
        (store.uri_of("t.tar!/a.jpg"), 5),
        (store.uri_of("t.tar!/b.jpg"), 1),
    ]
    assert inventory.skipped == {"tar member: a later one has the same name": 1}


def test_a_brace_expansion_names_shards_and_a_missing_one_becomes_a_line(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {f"s-{i:03d}.tar": tar_of({f"{i}.jpg": b"1"}) for i in (0, 1, 3)})
    _, lines = listed(f"{store_uri}/s-{{000..003}}.tar", tmp_path / "work")
    assert [line["uri"] for line in lines if not line["problem"]] == [
        store.uri_of(f"s-{i:03d}.tar!/{i}.jpg") for i in (0, 1, 3)
    ]
    assert [line["uri"] for line in lines if line["problem"]] == [store.uri_of("s-002.tar")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "does not exist"),
        ("missing/*.jpg", "nothing matches|does not exist"),
        ("no-{1..3}.tar", "nothing matches"),
        ("notes.txt", "is no source"),
        ("archive.tar.gz", "compressed tar"),
        ("texts", "holds no image, video or tar; left out: 1 x no image or video ending: .txt"),
    ],
)
def test_a_source_that_is_none_is_one_clear_error(store_uri: str, tmp_path: Path, source: str, message: str) -> None:
    fill(store_uri, {"notes.txt": b"1", "archive.tar.gz": b"1", "texts/a.txt": b"1"})
    with pytest.raises(VisionmillError, match=message) as caught:
        listed(f"{store_uri}/{source}", tmp_path / "work")
    assert caught.value.hint
    assert not list((tmp_path / "work").glob("*.parquet*"))


@pytest.mark.s3
def test_a_missing_bucket_says_so(s3_server: object, tmp_path: Path) -> None:
    with pytest.raises(BucketMissing, match="no-such-bucket"):
        listed("s3://no-such-bucket/photos", tmp_path / "work")


@pytest.mark.s3
def test_a_beginning_of_keys_gets_the_hint_to_use_a_glob(s3_bucket: str, tmp_path: Path) -> None:
    fill(s3_bucket, {"img_1.jpg": b"1"})
    with pytest.raises(DatasetError) as caught:
        listed(f"{s3_bucket}/img_", tmp_path / "work")
    assert f"{s3_bucket}/img_*" in caught.value.hint


@pytest.mark.parametrize(("source", "kind"), [("", DatasetError), ("  ", DatasetError), ("gs://b/x", UsageError)])
def test_what_names_nothing_is_refused(tmp_path: Path, source: str, kind: type[VisionmillError]) -> None:
    with pytest.raises(kind):
        listed(source, tmp_path / "work")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds nothing"):
        listed(str(tmp_path / "empty"), tmp_path / "work")


def test_file_uris_and_relative_paths_become_plain_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path / "in"), {"a%20b.jpg": b"1"})
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate([f"file://{tmp_path}/in", "in", "./in/*.jpg", "in/a%20b.jpg"]):
        _, lines = listed(source, tmp_path / f"work{number}")
        assert [line["uri"] for line in lines] == [f"{tmp_path}/in/a%20b.jpg"]


def test_a_local_name_that_is_no_text_becomes_a_line_with_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
            file.write(b"1")
    except OSError:
        pytest.skip("this file system takes valid UTF-8 names only")
    inventory, lines = listed(str(folder), tmp_path / "work")
    assert inventory.num_problems == 1
    assert lines[0]["uri"] == f"{folder}/caf\\xe9.jpg"
    assert "UTF-8" in lines[0]["problem"]


def test_a_broken_link_named_as_the_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DatasetError, match="neither a file nor a folder"):
        listed(str(tmp_path / "link.jpg"), tmp_path / "work")


def test_links_that_lead_nowhere_and_pipes_are_counted(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "in"), {"a.jpg": b"1", "d/b.jpg": b"2"})
    folder = tmp_path / "in"
    (folder / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / "d" / "up").symlink_to(folder)
    (folder / "twin.jpg").symlink_to(folder / "a.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    inventory, lines = listed(store.uri, tmp_path / "work")
    assert [line["uri"] for line in lines] == [store.uri_of(name) for name in ("a.jpg", "d/b.jpg", "twin.jpg")]
    assert inventory.skipped == {
        "a link that leads nowhere": 1,
        "a link to itself": 1,
        "a link to a folder that it lies in": 1,
        "no regular file (a pipe, socket or device)": 2,
    }


def test_links_that_lead_out_of_the_source_are_followed_only_on_request(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "in"), {"a.jpg": b"1", "d/b.jpg": b"2"})
    fill(str(tmp_path / "in-beside"), {"c.jpg": b"3"})
    folder = tmp_path / "in"
    (folder / "beside").symlink_to(tmp_path / "in-beside")
    (folder / "c.jpg").symlink_to(tmp_path / "in-beside" / "c.jpg")
    (folder / "twin").symlink_to(folder / "d")
    (folder / "d" / "up").symlink_to(folder)
    names = {}
    for follow in (False, True):
        inventory = take_inventory(store.uri, folder=tmp_path / "work", follow_links=follow)
        uris = pq.read_table(inventory.path)["uri"].to_pylist()
        names[follow] = {uri.removeprefix(f"{store.uri}/") for uri in uris}, inventory.skipped.get(LEADS_OUT, 0)
    inside = {"a.jpg", "d/b.jpg", "twin/b.jpg"}
    assert names == {False: (inside, 2), True: (inside | {"beside/c.jpg", "c.jpg"}, 0)}


def test_the_inventory_replaces_an_older_one_only_when_it_is_whole(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "in"), {"a.jpg": b"1"})
    first, _ = listed(store.uri, tmp_path / "work")
    with pytest.raises(DatasetError):
        listed(str(tmp_path / "missing"), tmp_path / "work")
    assert pq.read_metadata(first.path).num_rows == first.num_objects
    open_store(store.uri).put("b.jpg", b"1")
    second, _ = listed(store.uri, tmp_path / "work")
    assert second.num_objects == 2
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["inventory.parquet"]


@pytest.mark.s3
def test_wrong_credentials_are_one_clear_error_without_the_secret(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3_bucket, {"a.jpg": b"1"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-that-must-not-show")
    with pytest.raises(AccessDenied) as caught:
        listed(s3_bucket, tmp_path / "work")
    assert "wrong-secret" not in caught.value.message + caught.value.hint


@pytest.mark.s3
def test_a_store_that_stays_unavailable_ends_the_listing(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(s3_bucket, {"t.tar": tar_of({"a.jpg": b"1"}), "b.jpg": b"1"})

    def unavailable(*_: object, **__: object) -> None:
        raise StoreUnavailable("503 from the store")

    monkeypatch.setattr(type(store), "open", unavailable)
    with pytest.raises(StoreUnavailable):
        listed(s3_bucket, tmp_path / "work")
    assert not list((tmp_path / "work").glob("*.parquet*"))
