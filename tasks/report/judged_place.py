"""Where the page about a judged model lies, and whether something else lies there; costs nothing to import."""

from __future__ import annotations

from infra.errors import BucketMissing, ObjectGone, UsageError
from infra.store import Store, folder_of, open_store

PAGE_NAME = "evaluation.html"
PAGE_MARK = '<meta name="generator" content="visionmill evaluate">'
"""Such a page has it among its first lines."""
_ENDINGS = (".html", ".htm")
_HEAD_BYTES = 1024


def place_of_page(where: str) -> tuple[Store, str]:
    """The folder that a page lies in, and its name: what does not end like a page is a folder."""
    if not where.lower().endswith(_ENDINGS):
        return open_store(where), PAGE_NAME
    folder = folder_of(where)
    return open_store(folder), where.rpartition("/")[2]


def refuse_other_page(store: Store, key: str) -> None:
    """Raises UsageError where anything but such a page would be overwritten."""
    try:
        size = store.info(key).size_bytes
        head = store.read_range(key, 0, min(size, _HEAD_BYTES)) if size else b""
    except (ObjectGone, BucketMissing):
        return
    if PAGE_MARK.encode() not in head:
        raise UsageError(
            f"{store.uri_of(key)} is there already, and no page of evaluate",
            hint="name another file, or a folder: only such a page is written anew",
        )
