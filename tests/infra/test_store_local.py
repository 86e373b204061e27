"""A folder as a store: nothing half-written is ever visible, nothing is written through a link, disks fill up."""

from __future__ import annotations

import errno
import glob
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import infra.store_local
from infra.errors import AccessDenied, BucketMissing, Conflict, NoSpaceLeft, StoreError, StoreUnavailable
from infra.store import open_store
from infra.store_keys import RESERVED_FOLDER
from infra.store_local import STALE_SCRATCH_S, LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "root"))


def _visible(store: LocalStore) -> list[str]:
    return sorted(glob.glob(f"{store.uri}/**/*.parquet", recursive=True, include_hidden=True))


def test_a_failing_write_leaves_nothing_to_be_seen(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(infra.store_local.os, "fsync", fail)
    for act in (
        lambda: store.put_if_absent("a/part.parquet", b"x" * 1000),
        lambda: store.put("a/part.parquet", b"x" * 1000),
        lambda: store.compare_and_swap("a/part.parquet", b"x", None),
    ):
        with pytest.raises(NoSpaceLeft, match="no space left"):
            act()
    assert _visible(store) == []
    assert list(Path(store.uri, RESERVED_FOLDER, "scratch").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_no_space_left(tmp_path: Path) -> None:
    """A quota for one process: the kernel itself refuses to let files grow."""
    program = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from infra.errors import NoSpaceLeft
        from infra.store import open_store
        store = open_store({str(tmp_path / "root")!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.put_if_absent("part.parquet", b"x" * 100_000)
        except NoSpaceLeft as error:
            print("refused:", error)
        print("visible:", [found.key for found in store.list()])
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert "refused: no space left" in answer.stdout
    assert "visible: []" in answer.stdout


def test_a_writer_that_is_killed_half_way_leaves_nothing_to_be_seen(store: LocalStore) -> None:
    program = f"""
        import os, signal
        from infra.store_local import LocalStore
        def half(out):
            out.write(b"half"); out.flush(); os.kill(os.getpid(), signal.SIGKILL)
        LocalStore({store.uri!r})._create("a/part.parquet", half)
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False)
    assert answer.returncode == -9
    assert _visible(store) == []
    assert list(store.list()) == []
    left = list(Path(store.uri, RESERVED_FOLDER, "scratch").iterdir())
    assert len(left) == 1
    old_s = time.time() - STALE_SCRATCH_S - 60
    os.utime(left[0], (old_s, old_s))
    assert LocalStore(store.uri).put_if_absent("a/part.parquet", b"whole")
    assert not left[0].exists()  # swept by the next writer
    assert store.get("a/part.parquet") == b"whole"


def test_a_young_scratch_file_of_another_writer_is_left_alone(store: LocalStore) -> None:
    store.put("x", b"1")
    young = Path(store.uri, RESERVED_FOLDER, "scratch", "other.partial")
    young.write_bytes(b"half")
    LocalStore(store.uri).put("y", b"2")
    assert young.exists()


def test_the_reserved_folder_is_neither_listed_nor_written(store: LocalStore) -> None:
    store.put("x", b"1")
    assert [found.key for found in store.list()] == ["x"]
    assert list(store.list(RESERVED_FOLDER)) == []
    with pytest.raises(StoreError, match="reserved"):
        store.put(f"{RESERVED_FOLDER}/lock", b"1")


@pytest.mark.parametrize("key", ["a//b", "a/", "a/b//"])
def test_a_key_that_would_alias_another_is_refused(store: LocalStore, key: str) -> None:
    with pytest.raises(StoreError, match="empty part"):
        store.put(key, b"x")


def test_nothing_is_written_through_a_link_out_of_the_root(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    store.put("inside", b"x")
    (Path(store.uri) / "link").symlink_to(outside)
    (Path(store.uri) / "file").symlink_to(outside / "precious")
    for key in ("link/new", "link/precious", "file"):
        for act in (
            lambda key=key: store.put(key, b"bad"),
            lambda key=key: store.put_if_absent(key, b"bad"),
            lambda key=key: store.compare_and_swap(key, b"bad", "1-8"),
            lambda key=key: store.delete(key),
        ):
            with pytest.raises(StoreError, match="link"):
                act()
    assert (outside / "precious").read_bytes() == b"precious"
    assert [one.name for one in outside.iterdir()] == ["precious"]


def test_datasets_made_of_links_can_be_read(store: LocalStore, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "image.jpg").write_bytes(b"pixels")
    store.put("own.jpg", b"x")
    root = Path(store.uri)
    (root / "folder").symlink_to(real)
    (root / "single.jpg").symlink_to(real / "image.jpg")
    (root / "loop").symlink_to(root)
    (root / "dangling.jpg").symlink_to(tmp_path / "gone")
    assert [found.key for found in store.list()] == ["folder/image.jpg", "own.jpg", "single.jpg"]
    assert store.get("folder/image.jpg") == store.get("single.jpg") == b"pixels"


def test_listing_is_in_the_order_of_the_keys_bytes(store: LocalStore) -> None:
    keys = ["a-b", "a.b", "a/x", "a/b/c", "a/b-c", "a0", "Z", "ä", "日", "a b"]
    for key in keys:
        store.put(key, b"1")
    assert [found.key for found in store.list()] == sorted(keys, key=str.encode)
    assert [found.key for found in store.list("a/b")] == ["a/b-c", "a/b/c"]


def test_what_vanishes_while_it_is_listed_is_left_out(store: LocalStore) -> None:
    for key in ("a/1", "b/1", "c"):
        store.put(key, b"x")
    listed = iter(store.list())
    assert next(listed).key == "a/1"
    store.delete("b/1")  # and its folder
    store.delete("c")
    assert list(listed) == []


def test_a_missing_folder_is_named_when_listed_and_made_when_written(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    with pytest.raises(BucketMissing, match="new"):
        list(store.list())
    store.put("x", b"1")
    assert [found.key for found in store.list()] == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_folder_without_permission_is_denied(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(AccessDenied):
        open_store(str(tmp_path / "locked")).put("x", b"1")
    (tmp_path / "locked").chmod(0o000)
    with pytest.raises(AccessDenied):
        list(open_store(str(tmp_path)).list())
    (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceLeft),
        (errno.EDQUOT, NoSpaceLeft),
        (errno.EACCES, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ENAMETOOLONG, StoreError),
    ],
)
def test_operating_system_errors_come_in_our_words(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(infra.store_local.os, "replace", fail)
    with pytest.raises(StoreError) as caught:
        store.put("x", b"1")
    assert type(caught.value) is kind
    assert "x" in caught.value.message


def test_a_key_too_long_for_the_file_system_is_an_error_of_that_key(store: LocalStore) -> None:
    with pytest.raises(StoreError, match="too long"):
        store.put_if_absent("k" * 300, b"1")


def test_without_hard_links_creates_are_still_exclusive(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(infra.store_local.os, "link", no_links)
    assert store.put_if_absent("a/x", b"first")
    assert not store.put_if_absent("a/x", b"second")
    assert store.get("a/x") == b"first"


def test_swaps_of_equal_size_within_one_tick_are_told_apart(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks stand still for milliseconds: the etag must differ all the same, or a lost update goes unnoticed."""
    monkeypatch.setattr(infra.store_local.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    first = store.put("pointer", b"A")
    second = store.put("pointer", b"B")
    assert first != second
    with pytest.raises(Conflict):
        store.compare_and_swap("pointer", b"C", first)
    third = store.compare_and_swap("pointer", b"C", second)
    assert len({first, second, third}) == 3


def test_swaps_from_many_processes_lose_no_update(store: LocalStore) -> None:
    store.put("count", b"0")
    program = f"""
        from infra.errors import Conflict
        from infra.store import open_store
        store = open_store({store.uri!r})
        done = 0
        while done < 25:
            data, etag = store.get_with_etag("count")
            try:
                store.compare_and_swap("count", str(int(data) + 1).encode(), etag)
                done += 1
            except Conflict:
                pass
    """
    workers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0, 0]
    assert store.get("count") == b"100"


def test_stores_that_are_done_leave_files_alone_and_lock_out_nobody_who_still_writes(tmp_path: Path) -> None:
    LocalStore(str(tmp_path / "root")).put("count", b"0")
    assert os.listdir(tmp_path / "root") == ["count"], "no lock, no scratch space"
    program = f"""
        from infra.errors import Conflict
        from infra.store_local import LocalStore
        done = 0
        while done < 25:
            store = LocalStore({str(tmp_path / "root")!r})
            data, etag = store.get_with_etag("count")
            try:
                store.compare_and_swap("count", str(int(data) + 1).encode(), etag)
                done += 1
            except Conflict:
                pass
    """
    workers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0, 0]
    assert (tmp_path / "root" / "count").read_bytes() == b"100"
    assert os.listdir(tmp_path / "root") == ["count"]


def test_deleting_the_last_object_removes_its_empty_folders(store: LocalStore) -> None:
    store.put("a/b/c/x", b"1")
    store.put("a/y", b"1")
    store.delete("a/b/c/x")
    assert sorted(one.name for one in (Path(store.uri) / "a").iterdir()) == ["y"]
