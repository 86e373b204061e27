"""Where the images lie that a file of labels names: found in the usual layouts, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from infra.errors import BucketMissing, DatasetError, ObjectGone, StoreError
from infra.store import open_store, resolve_name, split_uri
from tasks.ingest.coco import image_roots
from tasks.labels.label_sets import LabelSet

TRIED = 3  # names of a file are looked for below each folder that might be the root
_THREADS = 32
MISSING = "image that is not there"


def find_images_root(uri: str, names: Sequence[str], images_root: str | None = None) -> str:
    """The folder below which the first names of a file of labels exist; the first that was tried if none does.

    Tried is where :func:`tasks.ingest.coco.image_roots` looks for them.

    Args:
        uri: of the file of labels.
        names: of its images, as they stand there.
        images_root: where the caller says they are.
    """
    roots = image_roots(uri, images_root)
    for root in roots:
        tried = [name for each in names[:TRIED] if (name := resolve_name(root, each)) is not None]
        try:
            if any(map(_exists, tried)):
                return root
        except StoreError:
            continue  # whoever opens the images will say it
    return roots[0]


def with_images_checked(labels: LabelSet, uri: str, *, allow_missing: bool = False) -> LabelSet:
    """The label set if all its images exist.

    Args:
        labels: as read.
        uri: where from, for messages.
        allow_missing: leave out items whose image does not exist, and count them.

    Raises:
        DatasetError: names the first image that is missing, and how many are.
    """
    uris = labels.table["uri"].to_pylist()
    missing = missing_of(uris)
    if not missing:
        return labels
    if not allow_missing or len(missing) == len(set(uris)):
        raise DatasetError(
            f"{len(missing)} of {len(set(uris))} images that {uri} names are not there, the first is {missing[0]}",
            hint="--images-root says below which folder they lie; --allow-dropped goes on without a part of them.",
        )
    gone = set(missing)
    rows = labels.table.select(["image_id", "uri"]).to_pylist()
    losses = dataclasses.replace(labels.losses, left_out=labels.losses.left_out.copy())
    losses.leave_out(MISSING, len(missing))
    kept = labels.only(row["image_id"] for row in rows if row["uri"] not in gone)
    return dataclasses.replace(kept, losses=losses)


def missing_of(uris: Iterable[str]) -> list[str]:
    """Those that do not exist, in their order. Raises StoreError when a store does not answer."""
    once = list(dict.fromkeys(uris))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as pool:
        return [uri for uri, there in zip(once, pool.map(_exists, once), strict=True) if not there]


def _exists(uri: str) -> bool:
    root, key = split_uri(uri)
    try:
        open_store(root).info(key)
    except (ObjectGone, BucketMissing):
        return False
    return True
