"""What writing to a folder needs beside its files: a lock and scratch space, which go when nobody needs them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def lock(path: Path) -> int:
    """The handle of the locked file. One that was removed before it was ours locks nobody out: then once more."""
    while True:
        handle = in_folder(path, lambda: os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_file(handle, path):
            return handle
        os.close(handle)


def tidy(folder: Path) -> None:
    """Remove scratch space that is empty and a lock that nobody holds; whoever writes later makes them anew."""
    with suppress(OSError):
        (folder / "scratch").rmdir()
    with suppress(OSError):
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(handle, folder / "lock"):
                (folder / "lock").unlink()
        finally:
            os.close(handle)
    with suppress(OSError):
        folder.rmdir()


def in_folder(target: Path, act: Callable[[], T]) -> T:
    """Run ``act`` with the target's folder present; another process may remove it in between, being empty."""
    for _ in range(100):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return act()
        except FileNotFoundError:
            continue
    return act()


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
