from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from infra.store import Store, open_store
from tasks.media import reading
from tasks.media.decoding import DecodeOptions, EntryReader, fetch_entry
from tasks.media.reading import BLOCK_BYTES, BlockReader
from tasks.output.entries import member_etag, unknown_etag
from tasks.records import Entry, ItemFailure
from tests.faults import Fault, FaultyS3


def put(store: Store, key: str, data: bytes) -> Entry:
    store.put(key, data)
    info = store.info(key)
    return Entry(uri=store.uri_of(key), etag=info.etag, size_bytes=info.size_bytes, media="image")


class CountingStore:
    """Passes reads on and remembers them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ranges: list[tuple[int, int]] = []
        self.whole = 0

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        self.ranges.append((offset, length))
        return self._store.read_range(key, offset, length, etag=etag)

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        self.whole += 1
        return self._store.get(key, etag=etag)

    def info(self, key: str) -> object:
        return self._store.info(key)


def test_whole_objects_come_back_whatever_they_are_called(store_uri: str) -> None:
    store = open_store(store_uri)
    reader = EntryReader()
    for name in [
        "a.jpg",
        "with space.jpg",
        "hash#.jpg",
        "quest?ion.jpg",
        "percent%41.jpg",
        "ünï-日本-😀.jpg",
        "a+b&c=.jpg",
    ]:
        entry = put(store, f"deep/folder/{name}", name.encode())
        assert reader.fetch(entry) == name.encode()
        with reader.open(entry) as file:
            assert file.read() == name.encode()


def test_a_replaced_object_is_a_failed_item_not_another_image(store_uri: str) -> None:
    store = open_store(store_uri)
    entry = put(store, "a.jpg", b"listed content")
    store.put("a.jpg", b"newer content!")
    failure = EntryReader().fetch(entry)
    assert isinstance(failure, ItemFailure)
    assert (failure.stage, failure.error_type) == ("fetch", "ObjectChanged")
    assert "changed since it was listed" in failure.error
    assert "a.jpg" in failure.error


def test_a_missing_object_is_a_failed_item(store_uri: str) -> None:
    store = open_store(store_uri)
    entry = put(store, "a.jpg", b"soon gone")
    store.delete("a.jpg")
    failure = EntryReader().fetch(entry)
    assert isinstance(failure, ItemFailure)
    assert failure.error_type == "ObjectGone"
    assert "a.jpg" in failure.error


def test_members_of_a_tar_are_read_in_place_and_pinned_to_the_tar(store_uri: str) -> None:
    store = open_store(store_uri)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [("x/1.jpg", b"first member"), ("x/2.jpg", b"second, longer member")]:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    store.put("shard.tar", buffer.getvalue())
    etag = store.info("shard.tar").etag
    buffer.seek(0)
    reader = EntryReader()
    with tarfile.open(fileobj=buffer) as tar:
        entries = [
            Entry(
                uri=f"{store.uri_of('shard.tar')}!/{m.name}",
                etag=member_etag(etag, m.offset_data, m.size),
                size_bytes=m.size,
                media="image",
                container=store.uri_of("shard.tar"),
                offset=m.offset_data,
                length=m.size,
            )
            for m in tar.getmembers()
        ]
    assert [reader.fetch(entry) for entry in entries] == [b"first member", b"second, longer member"]
    with reader.open(entries[1]) as file:
        assert file.read() == b"second, longer member"
    store.put("shard.tar", buffer.getvalue() + b"x")
    failure = reader.fetch(entries[0])
    assert isinstance(failure, ItemFailure)
    assert failure.error_type == "ObjectChanged"


@pytest.mark.parametrize("stated", [True, False])
def test_an_image_beyond_the_limit_is_a_failed_item_and_is_not_read(tmp_path: Path, stated: bool) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(40 << 30)
    size = path.stat().st_size
    etag = f"{path.stat().st_mtime_ns}-{size}" if stated else unknown_etag(0)
    failure = EntryReader().fetch(Entry(str(path), etag, size if stated else 0, "image"))
    assert isinstance(failure, ItemFailure)
    assert (failure.stage, failure.error_type) == ("fetch", "TooManyBytes")
    assert failure.error == f"the file has {40 << 30} bytes; the limit is {1 << 30}"
    member = Entry(f"{path}!/a.jpg", "e:0:9", 9, "image", container=str(path), offset=0, length=1 << 40)
    assert isinstance(EntryReader().fetch(member), ItemFailure)
    entry = Entry(str(path), etag, size, "image")
    small = fetch_entry(entry, EntryReader(), DecodeOptions(max_file_bytes=10))
    assert isinstance(small, ItemFailure)
    assert small.error.endswith("the limit is 10")


def test_an_address_that_nothing_is_read_from_is_a_failed_item() -> None:
    for media in ("image", "video"):
        entry = Entry("gs://bucket/a.jpg", unknown_etag(0), 0, media)  # type: ignore[arg-type]
        failure = fetch_entry(entry, EntryReader())
        assert isinstance(failure, ItemFailure)
        assert "gs" in failure.error


def test_an_entry_whose_listing_knew_no_etag_is_read_unpinned(store_uri: str) -> None:
    store = open_store(store_uri)
    put(store, "a.jpg", b"bytes")
    entry = Entry(uri=store.uri_of("a.jpg"), etag=unknown_etag(0), size_bytes=0, media="image")
    assert EntryReader().fetch(entry) == b"bytes"
    with EntryReader().open(entry) as file:
        assert file.read() == b"bytes"


def test_a_folder_in_place_of_a_file_is_a_failed_item(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    entry = Entry(uri=str(tmp_path / "folder.jpg"), etag=unknown_etag(1), size_bytes=1, media="image")
    failure = EntryReader().fetch(entry)
    assert isinstance(failure, ItemFailure)
    assert failure.stage == "fetch"


def test_one_store_is_opened_per_root_however_many_folders(tmp_path: Path) -> None:
    opened = []

    def opening(uri: str) -> Store:
        opened.append(uri)
        return open_store(uri)

    reader = EntryReader(opening)
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        path = tmp_path / str(i) / "a.bin"
        path.write_bytes(b"x")
        stat = os.stat(path)
        assert reader.fetch(Entry(str(path), f"{stat.st_mtime_ns}-1", 1, "image")) == b"x"
    assert opened == ["/"]


def test_block_reader_equals_the_file_at_random_positions(store_uri: str) -> None:
    data = random.Random(5).randbytes(3 * BLOCK_BYTES + 12_345)
    store = open_store(store_uri)
    entry = put(store, "v.mp4", b"head" + data + b"tail")
    file = BlockReader(store, "v.mp4", 4, len(data), entry.etag)
    choose = random.Random(6)
    for _ in range(60):
        position, length = choose.randrange(len(data) + 100), choose.randrange(200_000)
        file.seek(position)
        got = b""
        while part := file.read(length - len(got)):
            got += part
        assert got == data[position : position + length]
    file.seek(-10, io.SEEK_END)
    assert file.read(100) == data[-10:]
    assert file.read(100) == b""
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)


def test_sequential_reading_asks_further_ahead_and_a_seek_does_not(tmp_path: Path) -> None:
    blocks = 40
    store = open_store(str(tmp_path))
    store.put("v.mp4", bytes(blocks * BLOCK_BYTES))
    counting = CountingStore(store)
    file = BlockReader(counting, "v.mp4", 0, blocks * BLOCK_BYTES, None)  # type: ignore[arg-type]
    while file.read(1 << 16):
        assert len(file._blocks) <= reading.CACHED_BLOCKS + reading.MAX_AHEAD_BLOCKS
    assert sum(length for _, length in counting.ranges) == blocks * BLOCK_BYTES
    assert len(counting.ranges) <= 8  # 2 + 4 + 8 + 8 + ...
    counting.ranges.clear()
    file.seek(3 * BLOCK_BYTES + 5)
    file.read(10)
    assert counting.ranges == [(3 * BLOCK_BYTES, BLOCK_BYTES)]


def test_small_videos_are_fetched_with_one_request(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = put(store, "v.mp4", bytes(100_000))
    counting = CountingStore(open_store("/"))
    with EntryReader(lambda _: counting).open(entry) as file:  # type: ignore[arg-type, return-value]
        file.seek(50_000)
        file.read(10)
        file.seek(0)
        file.read()
    assert (counting.whole, counting.ranges) == (1, [])


@pytest.mark.s3
def test_a_store_that_stays_down_costs_an_item_not_the_worker(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("VISIONMILL_STORE_FIRST_DELAY_S", "0.01")
    entry = put(open_store(s3_bucket), "a.jpg", b"bytes")
    fault = faulty_s3.add(Fault("status", method="GET", path="a.jpg", status=500, code="InternalError", times=None))
    failure = EntryReader().fetch(entry)
    assert isinstance(failure, ItemFailure)
    assert failure.error_type == "StoreUnavailable"
    assert "a.jpg" in failure.error
    assert fault.seen >= 2


@pytest.mark.s3
def test_a_torn_answer_is_asked_for_again(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    entry = put(open_store(s3_bucket), "a.jpg", bytes(range(256)) * 100)
    fault = faulty_s3.add(Fault("torn_body", method="GET", path="a.jpg", after_bytes=1000))
    assert EntryReader().fetch(entry) == bytes(range(256)) * 100
    assert fault.seen == 1
