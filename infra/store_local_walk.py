"""Walk a folder in key order (the byte order of full keys), holding one folder's names at a time."""

from __future__ import annotations

import errno
import os
import stat as stat_flags
from collections.abc import Callable, Iterator

from infra.errors import AccessDenied
from infra.store_keys import RESERVED_FOLDER

LeftOut = Callable[[str, str], None]
LEADS_OUT = "a link that leads out of the source (--follow-links takes it)"


def forget(key: str, why: str) -> None:
    """Nobody asks what is left out."""


def etag_of(stat: os.stat_result) -> str:
    """The etag of a local file: ``<mtime_ns>-<size>``."""
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def walk_files(
    root: str, prefix: str = "", left_out: LeftOut = forget, *, stays_inside: bool = False
) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below ``root`` whose key starts with ``prefix``, as (key, stat), in key order.

    Links are followed; a folder link that leads back to one of its own parents is skipped. Files and
    folders that vanish in between are left out.

    Args:
        left_out: told the key of what is there and no regular file, and why.
        stays_inside: leave out links that lead to a place that is not below ``root``, too.

    Raises:
        AccessDenied: a folder cannot be read (a listing that silently leaves out half a dataset would be worse).
    """
    start = prefix.rpartition("/")[0]
    folder = os.path.join(root, start) if start else root
    if os.path.isdir(folder) and ".." not in start.split("/"):
        within = os.path.join(os.path.realpath(root), "") if stays_inside else None
        yield from _walk(folder, f"{start}/" if start else "", prefix, frozenset(), left_out, within)


def _walk(
    folder: str,
    base: str,
    prefix: str,
    parents: frozenset[tuple[int, int]],
    left_out: LeftOut,
    within: str | None,
) -> Iterator[tuple[str, os.stat_result]]:
    try:
        here = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (here.st_dev, here.st_ino)
    if identity in parents:
        left_out(base.rstrip("/"), "a link to a folder that it lies in")
        return
    for name in _sorted_names(folder, hide=RESERVED_FOLDER if not base else ""):
        key = base + name
        if not (key.startswith(prefix) or prefix.startswith(key)):
            continue
        path = os.path.join(folder, name)
        if within is not None and _leads_out(path.rstrip("/"), within):
            left_out(key.rstrip("/"), LEADS_OUT)
            continue
        if name.endswith("/"):
            yield from _walk(path[:-1], key, prefix, parents | {identity}, left_out, within)
        elif key.startswith(prefix):
            try:
                stat = os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                if os.path.islink(path):
                    left_out(key, "a link to itself" if error.errno == errno.ELOOP else "a link that leads nowhere")
                continue
            if stat_flags.S_ISREG(stat.st_mode):
                yield key, stat
            else:
                left_out(key, "no regular file (a pipe, socket or device)")


def _leads_out(path: str, within: str) -> bool:
    """Whether a path is a link to something that is there and not below ``within``."""
    return os.path.islink(path) and os.path.exists(path) and not f"{os.path.realpath(path)}/".startswith(within)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sorted_names(folder: str, hide: str) -> list[str]:
    """Names in ``folder``; folders carry their slash, which puts ``a-b`` before ``a/x`` exactly as full keys sort."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name + "/" if _is_folder(entry) else entry.name for entry in entries if entry.name != hide]
    except PermissionError as error:
        raise AccessDenied(f"the folder {folder} cannot be listed", hint="Check its owner and mode.") from error
    except FileNotFoundError:
        return []
    # os.fsencode gives the bytes on disk, also for names that are not valid UTF-8
    names.sort(key=os.fsencode)
    return names
