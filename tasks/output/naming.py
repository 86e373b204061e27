"""Names of items in the forms of other tools: relative to what all of them share, unique, and safe as paths."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from tasks.output.views import Views


def common_root(views: Views) -> str:
    """The folder that all exported uris share, with its slash; "" if there is none.

    What the first and the last uri in byte order share is shared by all between them.
    """
    first, last = views.connection.sql("SELECT min(uri), max(uri) FROM items WHERE status = 'ok'").fetchall()[0]
    return "" if first is None else shared_folder(first, last)


def shared_folder(first: str, last: str) -> str:
    """The folder that two uris share, with its slash; "" if there is none."""
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return first[: first.rfind("/", 0, shared) + 1]


def relative_name(uri: str, root: str, media: str, frame: int) -> str:
    """``a/b.jpg`` for an image, ``a/clip.mp4/000012.jpg`` for a frame of a video, never outside of where it is put."""
    rest = uri.removeprefix(root)
    pieces = [piece for piece in rest.split("/") if piece not in ("", ".", "..")]
    name = "/".join(pieces) or "item"
    if name != rest:  # what was dropped may have told two items apart
        name = f"{hashlib.sha256(uri.encode()).hexdigest()[:8]}/{name}"
    return name if media == "image" else f"{name}/{frame:06d}.jpg"


def without_extension(name: str) -> str:
    """``a/b.c.jpg`` -> ``a/b.c``: label files carry the name of their image."""
    path = PurePosixPath(name)
    return str(path.with_name(path.stem))
