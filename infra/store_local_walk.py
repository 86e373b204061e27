"""Walk a folder in key order (the byte order of full keys), holding one folder's names at a time."""

from __future__ import annotations

import os
import stat as stat_flags
from collections.abc import Iterator

from infra.errors import AccessDenied
from infra.store_keys import RESERVED_FOLDER


def etag_of(stat: os.stat_result) -> str:
    """The etag of a local file: ``<mtime_ns>-<size>``."""
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def walk_files(root: str, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below ``root`` whose key starts with ``prefix``, as (key, stat), in key order.

    Links are followed; a folder link that leads back to one of its own parents is skipped. Files and
    folders that vanish in between are left out.

    Raises:
        AccessDenied: a folder cannot be read (a listing that silently leaves out half a dataset would be worse).
    """
    start = prefix.rpartition("/")[0]
    folder = os.path.join(root, start) if start else root
    if os.path.isdir(folder) and ".." not in start.split("/"):
        yield from _walk(folder, f"{start}/" if start else "", prefix, frozenset())


def _walk(
    folder: str, base: str, prefix: str, parents: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result]]:
    try:
        here = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (here.st_dev, here.st_ino)
    if identity in parents:
        return
    for name in _sorted_names(folder, hide=RESERVED_FOLDER if not base else ""):
        key = base + name
        if not (key.startswith(prefix) or prefix.startswith(key)):
            continue
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path[:-1], key, prefix, parents | {identity})
        elif key.startswith(prefix):
            try:
                stat = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat_flags.S_ISREG(stat.st_mode):
                yield key, stat


def _sorted_names(folder: str, hide: str) -> list[str]:
    """Names in ``folder``; folders carry their slash, which puts ``a-b`` before ``a/x`` exactly as full keys sort."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name + "/" if entry.is_dir() else entry.name for entry in entries if entry.name != hide]
    except PermissionError as error:
        raise AccessDenied(f"the folder {folder} cannot be listed", hint="Check its owner and mode.") from error
    except FileNotFoundError:
        return []
    # os.fsencode gives the bytes on disk, also for names that are not valid UTF-8
    names.sort(key=os.fsencode)
    return names
