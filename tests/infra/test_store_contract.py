"""What every store promises, asked of a folder and of a real S3 server alike."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.errors import Conflict, ObjectChanged, ObjectGone, StoreError, UsageError
from infra.store import Store, absolute_uri, folder_of, is_local, open_store, resolve_name, split_uri

ODD_KEYS = [
    "a b.jpg",
    "100%.jpg",
    "50%41.jpg",
    "tag#1.jpg",
    "what?.jpg",
    "x=1&y=2+3.jpg",
    "straße/ünï/日本.jpg",
    "quote'\"`.jpg",
    "semi;colon,comma.jpg",
    "dir with space/[brackets]/{x}.jpg",
    "~tilde!*().jpg",
    "line\nbreak\tand\x01control.jpg",
]


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri)


def test_first_create_wins_and_the_second_changes_nothing(store: Store) -> None:
    assert store.put_if_absent("a/b.parquet", b"first")
    assert not store.put_if_absent("a/b.parquet", b"second")
    assert store.get("a/b.parquet") == b"first"


def test_of_many_racing_creates_exactly_one_wins(store: Store) -> None:
    for round_number in range(5):
        key, results, barrier = f"race/{round_number}", {}, threading.Barrier(8)

        def create(worker: int, key: str = key, results: dict = results, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            results[worker] = store.put_if_absent(key, f"worker {worker}".encode(), token=f"worker {worker}".encode())

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        winners = [worker for worker, won in results.items() if won]
        assert len(results) == 8
        assert len(winners) == 1
        assert store.get(key) == f"worker {winners[0]}".encode()


def test_of_many_racing_swaps_exactly_one_wins_each_time(store: Store) -> None:
    etag = store.compare_and_swap("count", b"0", None)
    for step in range(4):
        results, barrier = {}, threading.Barrier(6)

        def swap(
            n: int, etag: str = etag, step: int = step, out: dict = results, gate: threading.Barrier = barrier
        ) -> None:
            gate.wait()
            try:
                out[n] = store.compare_and_swap("count", f"{step}-{n}".encode(), etag)
            except Conflict:
                out[n] = None

        threads = [threading.Thread(target=swap, args=(n,)) for n in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        winners = [n for n, new in results.items() if new]
        assert len(winners) == 1
        data, etag = store.get_with_etag("count")
        assert data == f"{step}-{winners[0]}".encode()
        assert etag == results[winners[0]]


def test_swap_refuses_a_stale_etag_and_a_missing_object(store: Store) -> None:
    stale = store.put("pointer", b"one")
    fresh = store.compare_and_swap("pointer", b"two", stale)
    with pytest.raises(Conflict, match="pointer"):
        store.compare_and_swap("pointer", b"three", stale)
    with pytest.raises(Conflict):
        store.compare_and_swap("pointer", b"three", None)
    with pytest.raises(Conflict):
        store.compare_and_swap("absent", b"three", fresh)
    assert store.get_with_etag("pointer") == (b"two", fresh)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_are_data_and_never_decoded(store: Store, key: str) -> None:
    assert store.put_if_absent(key, key.encode())
    assert store.get(key) == key.encode()
    assert [found.key for found in store.list()] == [key]
    assert [found.key for found in store.list(key[:3])] == [key]
    root, name = split_uri(store.uri_of(key))
    assert open_store(root).get(name) == key.encode()
    with store.open(key) as file:
        assert file.read() == key.encode()
    assert store.read_range(key, 1, 2) == key.encode()[1:3]
    store.delete(key)
    assert list(store.list()) == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a/./b", "..", "", "a\0b"])
def test_a_key_that_would_leave_the_root_is_refused(store: Store, key: str) -> None:
    for act in (
        lambda: store.get(key),
        lambda: store.put(key, b"x"),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.compare_and_swap(key, b"x", None),
        lambda: store.read_range(key, 0, 1),
        lambda: store.info(key),
        lambda: store.open(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(StoreError, match="key"):
            act()


def test_empty_conditional_creates_are_refused(store: Store, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(StoreError, match="without content"):
        store.put_if_absent("x", b"")
    with pytest.raises(StoreError, match="without content"):
        store.compare_and_swap("x", b"", None)
    with pytest.raises(StoreError, match="without content"):
        store.put_file_if_absent("x", empty)
    with pytest.raises(ObjectGone):
        store.info("x")


def test_listing_streams_every_object_once_and_sees_new_ones(store: Store) -> None:
    keys = {f"{folder}/{n:04d}" for folder in ("a", "a-b", "a/c", "b") for n in range(5)}
    for key in keys:
        store.put(key, key.encode())
    listed = list(store.list())
    assert sorted(found.key for found in listed) == sorted(keys)
    assert all(found.size_bytes == len(found.key) for found in listed)
    assert {found.key for found in store.list("a/")} == {key for key in keys if key.startswith("a/")}
    assert {found.key for found in store.list("a")} == {key for key in keys if key.startswith("a")}
    assert list(store.list("nothing/")) == []
    store.put("a/new", b"x")
    assert "a/new" in {found.key for found in store.list("a/")}
    by_key = {found.key: found for found in store.list()}
    assert store.info("b/0003") == by_key["b/0003"]


def test_ranges_are_exact_or_an_error(store: Store) -> None:
    data = bytes(range(256)) * 40
    etag = store.put("r", data)
    assert store.read_range("r", 1000, 500, etag=etag) == data[1000:1500]
    assert store.read_range("r", 5, 0) == b""
    with pytest.raises(ObjectChanged):
        store.read_range("r", len(data) - 10, 11)
    with pytest.raises(ObjectChanged):
        store.read_range("r", len(data) + 10, 5)
    with pytest.raises(StoreError):
        store.read_range("r", -1, 5)


def test_a_replaced_object_is_noticed_by_every_reader(store: Store) -> None:
    old = store.put("v", b"version one")
    store.put("v", b"version two")
    for read in (lambda: store.get("v", etag=old), lambda: store.read_range("v", 0, 3, etag=old)):
        with pytest.raises(ObjectChanged, match="v"):
            read()
    data, new = store.get_with_etag("v")
    assert (data, store.get("v", etag=new)) == (b"version two", b"version two")


def test_the_reader_seeks_and_reads_one_version(store: Store) -> None:
    data = bytes(n % 251 for n in range(300_000))
    store.put("big", data)
    with store.open("big", block_bytes=4096) as file:
        assert file.seekable()
        file.seek(200_000)
        assert file.read(10) == data[200_000:200_010]
        file.seek(-5, 2)
        assert file.read() == data[-5:]
        file.seek(0)
        assert file.read() == data
        assert file.read(1) == b""


def test_missing_objects_are_gone_and_deleting_them_is_fine(store: Store) -> None:
    store.put("there", b"x")
    for act in (lambda: store.get("gone"), lambda: store.info("gone"), lambda: store.open("gone")):
        with pytest.raises(ObjectGone, match="gone"):
            act()
    store.delete("gone")
    store.delete("there")
    store.delete("there")
    assert list(store.list()) == []


def test_put_overwrites_and_etags_follow_the_content(store: Store) -> None:
    etags = {store.put("same", f"{n}".encode()) for n in range(20)}
    assert len(etags) == 20
    assert store.get("same") == b"19"


def test_a_file_is_created_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "upload.bin"
    file.write_bytes(b"x" * 100_000 + b"attempt-1")
    assert store.put_file_if_absent("copy", file, token=b"attempt-1")
    other = tmp_path / "other.bin"
    other.write_bytes(b"y" * 100_000 + b"attempt-2")
    assert not store.put_file_if_absent("copy", other, token=b"attempt-2")
    assert store.get("copy") == file.read_bytes()


def test_the_probe_tries_and_leaves_nothing_behind(store: Store) -> None:
    store.put("kept", b"x")
    found = store.probe()
    assert (found.conditional_create, found.compare_and_swap) == (True, True)
    assert [one.key for one in store.list()] == ["kept"]


def test_stores_refuse_to_be_pickled(store: Store) -> None:
    with pytest.raises(TypeError, match="open_store"):
        pickle.dumps(store)


@pytest.mark.parametrize(
    ("uri", "root", "key"),
    [
        ("s3://b/x/y.jpg", "s3://b", "x/y.jpg"),
        ("s3://b/x%20y#z?.jpg", "s3://b", "x%20y#z?.jpg"),
        ("/data/a b#.jpg", "/data", "a b#.jpg"),
        ("file:///data/a%20b.jpg", "/data", "a%20b.jpg"),
        ("/one", "/", "one"),
    ],
)
def test_uris_split_without_decoding(uri: str, root: str, key: str) -> None:
    assert split_uri(uri) == (root, key)


@pytest.mark.parametrize(
    ("uri", "absolute", "folder"),
    [
        ("s3://b/x/y#1.json", "s3://b/x/y#1.json", "s3://b/x"),
        ("s3://b/x/", "s3://b/x", "s3://b"),
        ("file:///data/a%20b/", "/data/a%20b", "/data"),
        ("/one", "/one", "/"),
        ("a/../b.json", f"{Path.cwd()}/b.json", str(Path.cwd())),
    ],
)
def test_uris_become_absolute_and_know_their_folder(uri: str, absolute: str, folder: str) -> None:
    assert (absolute_uri(uri), folder_of(uri)) == (absolute, folder)
    assert is_local(absolute) == is_local(uri) == absolute.startswith("/")


@pytest.mark.parametrize(
    ("root", "name", "uri"),
    [
        ("/data", "a/b%20#.jpg", "/data/a/b%20#.jpg"),
        ("/data", "../x.jpg", "/x.jpg"),
        ("/data", "/elsewhere/x.jpg", "/elsewhere/x.jpg"),
        ("/", "x.jpg", "/x.jpg"),
        ("/data", "s3://b/x.jpg", "s3://b/x.jpg"),
        ("s3://b/p", "a/b%20#.jpg", "s3://b/p/a/b%20#.jpg"),
        ("s3://b/p", "../x.jpg", "s3://b/x.jpg"),
        ("s3://b/p", "../../x.jpg", None),
    ],
)
def test_names_are_found_below_their_root_and_inside_its_bucket(root: str, name: str, uri: str | None) -> None:
    assert resolve_name(root, name) == uri


@pytest.mark.parametrize(
    "uri", ["", "gs://bucket/x", "http://host/x", "file://host/x", "s3://", "s3://user:pass@bucket/x"]
)
def test_uris_nobody_can_open_are_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(uri)
    assert "pass" not in str(caught.value)


def test_who_waits_for_the_store_is_seen_to_wait_and_only_then(store_uri: str) -> None:
    """A worker that hangs is told by it from one whose store is slow."""
    entered: list[int] = []
    inside: list[int] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        entered.append(threading.get_ident())
        inside.append(entered[-1])
        try:
            yield
        finally:
            inside.pop()

    store = open_store(store_uri, waiting=waiting)
    calls: list[Callable[[], object]] = [
        lambda: store.put_if_absent("a", b"bytes"),
        lambda: store.get("a"),
        lambda: store.read_range("a", 1, 2),
        lambda: store.info("a"),
        lambda: store.put("a", b"others"),
        lambda: store.compare_and_swap("a", b"third", store.info("a").etag),
        lambda: store.delete("a"),
    ]
    for call in calls:
        before = len(entered)
        call()
        assert len(entered) > before
        assert not inside
    with pytest.raises(ObjectGone):
        store.get("a")
    assert not inside
    assert set(entered) == {threading.get_ident()}
