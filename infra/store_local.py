"""A folder as a store: exclusive links create, a lock and an atomic replace swap, readers never see a partial file."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NoReturn

from infra.errors import (
    AccessDenied,
    BucketMissing,
    Conflict,
    NoSpaceLeft,
    ObjectChanged,
    ObjectGone,
    StoreError,
    StoreUnavailable,
)
from infra.store_keys import RESERVED_FOLDER, check_key
from infra.store_local_private import in_folder, lock, tidy
from infra.store_local_walk import LeftOut, etag_of, forget, walk_files
from infra.store_probe import probe_store
from infra.store_types import ObjectInfo, StoreCapabilities, Waiting

STALE_SCRATCH_S = 6 * 3600.0  # an interrupted writer's scratch file is removed after this long
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """A folder. See :class:`infra.store.Store` for the contract.

    A write is complete and on disk (fsync) before it gets its name. Links that lead out of the root are followed for
    reading (datasets are often made of them) and refused for writing. Etags are ``<mtime_ns>-<size>``; every write here
    makes sure that the time differs from the file it replaces, so that a swap never mistakes one state for another.
    """

    def __init__(self, root: str, *, waiting: Waiting = nullcontext) -> None:
        self._waiting = waiting
        self.uri = root.rstrip("/") or "/"
        self._root = Path(self.uri)
        self._swept = self._has_written = False
        self._sweep_lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store is not pickled: send its URI and call open_store where it is used")

    def uri_of(self, key: str) -> str:
        return f"{self.uri.rstrip('/')}/{key}"

    def put_if_absent(self, key: str, data: bytes, *, token: bytes | None = None) -> bool:
        if not data:
            raise StoreError(f"refusing to create {self.uri_of(key)} without content: an empty create has no owner")
        return self._create(key, lambda out: _write_all(out, data))

    def put_file_if_absent(self, key: str, path: Path, *, token: bytes | None = None) -> bool:
        if path.stat().st_size == 0:
            raise StoreError(f"refusing to create {self.uri_of(key)} without content: an empty create has no owner")

        def copy(out: BinaryIO) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)

        return self._create(key, copy)

    def put(self, key: str, data: bytes) -> str:
        target = self._target(key)
        with self._translated(key), self._locked():
            return self._replace(target, data, previous=_etag_or_none(target))

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        if etag is None:
            if not self.put_if_absent(key, data):
                raise Conflict(f"{self.uri_of(key)} exists already")
            return self.info(key).etag
        target = self._target(key)
        with self._translated(key), self._locked():
            current = _etag_or_none(target)
            if current != etag:
                raise Conflict(f"{self.uri_of(key)} was changed by somebody else: its etag is {current}, not {etag}")
            return self._replace(target, data, previous=current)

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        data, found = self.get_with_etag(key)
        self._check_etag(key, found, etag)
        return data

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._translated(key), self._path(key).open("rb") as file:
            before = etag_of(os.fstat(file.fileno()))
            data = file.read()
            self._check_etag(key, etag_of(os.fstat(file.fileno())), before)
            return data, before

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        if offset < 0 or length < 0:
            raise StoreError(f"a range of {length} bytes at {offset} of {self.uri_of(key)} makes no sense")
        with self._translated(key), self._path(key).open("rb") as file:
            self._check_etag(key, etag_of(os.fstat(file.fileno())), etag)
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise ObjectChanged(f"{self.uri_of(key)} ends before byte {offset + length}: not the file that was listed")
        return data

    def open(self, key: str, *, block_bytes: int = 1 << 20) -> BinaryIO:
        with self._translated(key):
            return self._path(key).open("rb", buffering=max(block_bytes, 2))

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._translated(key):
            stat = path.stat()
            if not path.is_file():
                raise ObjectGone(f"{self.uri_of(key)} is no file")
            return ObjectInfo(key, stat.st_size, etag_of(stat))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.list_telling(prefix, forget)

    def list_telling(self, prefix: str, left_out: LeftOut, *, stays_inside: bool = False) -> Iterator[ObjectInfo]:
        """As :meth:`list`; ``left_out`` is told the key of what is no regular file (dead links, pipes), and why.

        Args:
            stays_inside: links that lead out of this store are left out, too.
        """
        if not self._root.is_dir():
            raise BucketMissing(f"the folder {self.uri} does not exist", hint="Check the path, or create the folder.")
        for key, stat in walk_files(self.uri, prefix, left_out, stays_inside=stays_inside):
            yield ObjectInfo(key, stat.st_size, etag_of(stat))

    def delete(self, key: str) -> None:
        target = self._target(key)
        with self._translated(key), self._locked():
            target.unlink(missing_ok=True)
            self._prune(target.parent)

    def probe(self, prefix: str = "_probe/") -> StoreCapabilities:
        return probe_store(self, prefix)

    def retry_counts(self) -> dict[str, int]:
        return {}

    # --- writing ------------------------------------------------------------------------------------------------

    def _create(self, key: str, write: Callable[[BinaryIO], None]) -> bool:
        target = self._target(key)
        with self._translated(key):
            if target.exists():
                return False
            scratch = self._scratch(write)
            try:
                return self._publish(scratch, target)
            finally:
                scratch.unlink(missing_ok=True)

    def _publish(self, scratch: Path, target: Path) -> bool:
        try:
            in_folder(target, lambda: os.link(scratch, target))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (FAT, some network mounts): take turns instead. Same promise among our own writers.
            with self._locked():
                if target.exists():
                    return False
                in_folder(target, lambda: os.replace(scratch, target))
        _sync_folder(target.parent)
        return True

    def _replace(self, target: Path, data: bytes, previous: str | None) -> str:
        scratch = self._scratch(lambda out: _write_all(out, data))
        try:
            etag = _distinct_etag(scratch, previous)
            in_folder(target, lambda: os.replace(scratch, target))
        finally:
            scratch.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return etag

    def _scratch(self, write: Callable[[BinaryIO], None]) -> Path:
        """A finished, synced file in the hidden scratch folder, with a nanosecond time stamp of its own."""
        self._tidy_later()
        scratch = self._root / RESERVED_FOLDER / "scratch" / f"{uuid.uuid4().hex}.partial"
        file = in_folder(scratch, lambda: scratch.open("xb"))
        try:
            with file as out:
                self._sweep(scratch.parent)
                write(out)
                out.flush()
                os.fsync(out.fileno())
            now_ns = time.time_ns()
            os.utime(scratch, ns=(now_ns, now_ns))
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return scratch

    def _sweep(self, folder: Path) -> None:
        with self._sweep_lock:
            if self._swept:
                return
            self._swept = True
        oldest_s = time.time() - STALE_SCRATCH_S
        for entry in os.scandir(folder):
            try:
                if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                    os.unlink(entry.path)
            except FileNotFoundError:
                continue  # another process sweeps too

    def _prune(self, folder: Path) -> None:
        """Remove the folders that a delete left empty, so that a local tree shows what an object store would."""
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of this root at a time, across threads and processes (each call opens the lock file anew)."""
        self._tidy_later()
        handle = lock(self._root / RESERVED_FOLDER / "lock")
        try:
            yield
        finally:
            os.close(handle)

    def _tidy_later(self) -> None:
        """When nobody needs this store any more, at the latest when the process ends, its private folder goes."""
        if not self._has_written:
            self._has_written = True
            weakref.finalize(self, tidy, self._root / RESERVED_FOLDER)

    # --- names and errors ---------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self._root / check_key(key, self.uri, folders=True)

    def _target(self, key: str) -> Path:
        """The path to write, refused if a link in it leads out of the root."""
        target = self._path(key)
        inside = os.path.realpath(self.uri)
        real = os.path.realpath(target.parent)
        if os.path.commonpath([real, inside]) != inside or target.is_symlink():
            raise StoreError(
                f"{self.uri_of(key)} leads through a link out of its root",
                hint="Remove the link or write to its target.",
            )
        return target

    def _check_etag(self, key: str, found: str, expected: str | None) -> None:
        if expected is not None and found != expected:
            raise ObjectChanged(f"{self.uri_of(key)} changed since it was listed: etag {found}, expected {expected}")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Operating system errors in our words, and the waiting told."""
        try:
            with self._waiting():
                yield
        except OSError as error:
            raise _translate(error, self.uri_of(key)) from error


def _write_all(out: BinaryIO, data: bytes) -> None:
    out.write(data)


def _distinct_etag(scratch: Path, previous: str | None) -> str:
    """Move the file's time on until it is later than that of the file it replaces (clocks stand still or step back)."""
    if previous is not None:
        oldest_ns = int(previous.partition("-")[0])
        step_ns = 1
        while scratch.stat().st_mtime_ns <= oldest_ns:
            os.utime(scratch, ns=(oldest_ns + step_ns, oldest_ns + step_ns))
            step_ns *= 10  # file systems round time stamps, some to seconds
    return etag_of(scratch.stat())


def _etag_or_none(path: Path) -> str | None:
    try:
        return etag_of(path.stat())
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # some network mounts cannot sync folders; a full disk or a broken one must not pass
    finally:
        os.close(handle)


def _translate(error: OSError, uri: str) -> Exception:
    number = error.errno
    if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return ObjectGone(f"{uri} does not exist, or is no file")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(f"no permission for {uri} ({os.strerror(number)})", hint="Check owner, mode and mount.")
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceLeft(f"no space left for {uri} ({os.strerror(number)})", hint="Free space, then run again.")
    if number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR):
        return StoreUnavailable(f"{uri}: {os.strerror(number)}", hint="The disk or network mount failed; check it.")
    return StoreError(f"{uri}: {error.strerror or error}")
