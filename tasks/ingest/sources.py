"""Turn a SOURCE string into a stream of inventory batches.

    folder, s3://bucket/prefix        everything below it: images, videos, and the members of tars
    glob, brace expansion             the objects that match (:mod:`tasks.ingest.patterns`)
    image, video                      that one
    .tar                              its members
    .json                             a COCO annotation file, or the manifest of an S3 Inventory
    .parquet, .csv, .csv.gz           a ready listing (:mod:`tasks.ingest.listings`); a glob of them is one listing

A name that exists is taken literally, whatever characters it holds; only then is it read as a pattern. Names are never
URL-decoded. URIs in the inventory are plain absolute paths or ``s3://bucket/key``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from infra.errors import DatasetError, ObjectGone
from infra.store import ObjectInfo, Store, is_local, open_store, split_uri
from infra.store_local import LocalStore
from tasks.ingest.coco import coco_pieces
from tasks.ingest.listings import LISTING_ENDINGS, listing_pieces
from tasks.ingest.patterns import expand_braces, glob_to_regex, has_braces, has_glob, literal_prefix
from tasks.ingest.s3_inventory import inventory_pieces, is_manifest
from tasks.ingest.tar_sources import TarTask, problem_row, with_members
from tasks.media.endings import kind_of, reason_to_skip
from tasks.output.entries import BATCH_ROWS, Row, Skipped, batches_of, is_unicode, printable

LOOKUP_THREADS = 16
PEEK_BYTES = 64 << 10

Pieces = Iterator[pa.RecordBatch | TarTask]


def read_source(
    source: str, *, folder: Path, skipped: Skipped, images_root: str | None = None, follow_links: bool = True
) -> Iterator[pa.RecordBatch]:
    """Inventory batches (:data:`tasks.output.entries.INVENTORY_SCHEMA`) of everything that ``source`` names.

    Args:
        source: see the module.
        folder: for scratch files, local.
        skipped: takes the counts of what is left out.
        images_root: where the images of a COCO file lie; default: its own folder.
        follow_links: take links that lead out of a local folder, too.

    Raises:
        DatasetError: nothing is there, or it is nothing that can be a source.
        StoreError: bucket missing, access denied, storage unavailable.
    """
    return with_members(_pieces(source, folder, skipped, images_root, follow_links), skipped)


def find_source(source: str) -> None:
    """Look whether a source is there, without listing it; raises as :func:`read_source`."""
    _pieces(source, Path(), Skipped(), None, True)


def _pieces(source: str, folder: Path, skipped: Skipped, images_root: str | None, follow_links: bool) -> Pieces:
    if not source.strip():
        raise DatasetError("the source is empty", hint="Name a folder, a file, a glob or s3://bucket/prefix.")
    root, key = split_uri(source)
    if (below := _folder_prefix(root, key)) is not None:
        store, prefix = below
        return _objects(store, _below(store, prefix, skipped, follow_links), skipped)
    store = open_store(root)
    if (info := _lookup(store, key)) is not None:
        return _single(store, info, folder, skipped, images_root)
    if has_glob(key) or has_braces(key) or (is_local(root) and _is_pattern(root)):
        return _matches(root, key, source, skipped)
    if is_local(root) and os.path.lexists(os.path.join(root, key)):
        raise DatasetError(f"{printable(source)} is neither a file nor a folder (a broken link, a pipe, a device?)")
    hint = "Check the path."
    if not is_local(root) and next(iter(store.list(key)), None) is not None:
        hint = f"Objects begin with that text: use the glob {source}* if you mean them."
    raise DatasetError(f"{printable(source)} does not exist", hint=hint)


def _is_pattern(text: str) -> bool:
    return has_glob(text) or has_braces(text)


def _folder_prefix(root: str, key: str) -> tuple[Store, str] | None:
    """The store and key prefix of a source that is a folder, else None. A bucket is a folder."""
    if is_local(root):
        path = os.path.join(root, key)
        return (open_store(path), "") if os.path.isdir(path) else None
    store = open_store(root)
    if not key:
        return store, ""
    prefix = key.rstrip("/") + "/"
    if not key.endswith("/") and _lookup(store, key) is not None:
        return None
    return (store, prefix) if next(iter(store.list(prefix)), None) is not None else None


def _below(store: Store, prefix: str, skipped: Skipped, follow_links: bool) -> Iterator[ObjectInfo]:
    """The objects of a folder; what is no regular file in a local one is counted."""
    if isinstance(store, LocalStore):
        left_out = lambda key, why: skipped.add(why, [store.uri_of(key)], 1)  # noqa: E731
        return store.list_telling(prefix, left_out, stays_inside=not follow_links)
    return store.list(prefix)


def _lookup(store: Store, key: str) -> ObjectInfo | None:
    if not key or key.endswith("/"):
        return None
    try:
        return store.info(key)
    except ObjectGone:
        return None


def _objects(store: Store, infos: Iterable[ObjectInfo], skipped: Skipped) -> Pieces:
    """Batches of the images and videos among ``infos``, and a task for each tar."""
    rows: list[Row] = []
    for info in infos:
        kind = kind_of(info.key)
        if not is_unicode(info.key):
            rows.append(problem_row(printable(store.uri_of(info.key)), "its name is not valid UTF-8", etag=info.etag))
        elif kind == "tar":
            yield TarTask(store, info.key, info.etag, info.size_bytes)
        elif kind == "other":
            skipped.add(reason_to_skip(info.key), [store.uri_of(info.key)], 1)
        else:
            rows.append(Row(store.uri_of(info.key), info.etag, info.size_bytes, kind))
        if len(rows) >= BATCH_ROWS:
            yield from batches_of(rows)
            rows = []
    yield from batches_of(rows)


def _single(store: Store, info: ObjectInfo, folder: Path, skipped: Skipped, images_root: str | None) -> Pieces:
    """The pieces of a source that is one object."""
    uri, name = store.uri_of(info.key), info.key.lower()
    if kind_of(info.key) != "other":
        return _objects(store, [info], skipped)
    if name.endswith(LISTING_ENDINGS):
        return listing_pieces(store, info.key, skipped)
    if name.endswith(".json"):
        if is_manifest(store.read_range(info.key, 0, min(PEEK_BYTES, info.size_bytes))):
            return inventory_pieces(store, info.key, skipped)
        return coco_pieces(store, info.key, images_root=images_root, folder=folder, skipped=skipped)
    raise DatasetError(
        f"{printable(uri)} is no source: {reason_to_skip(info.key)}",
        hint="A source is an image, a video, a .tar, a COCO .json, a manifest.json, or a .parquet or .csv listing.",
    )


def _matches(root: str, key: str, source: str, skipped: Skipped) -> Pieces:
    """What a pattern names. Of a brace expansion, names that do not exist become rows that say so."""
    bucket = None if is_local(root) else open_store(root)
    whole = os.path.join(root, key) if bucket is None else key
    is_listing = source.lower().endswith(LISTING_ENDINGS)
    found = False
    missing: list[str] = []
    for store, infos in _expanded(whole, bucket, missing):
        present = iter(infos)
        first = next(present, None)
        if first is None:
            continue
        found = True
        infos = itertools.chain([first], present)
        if is_listing:
            for info in infos:
                yield from listing_pieces(store, info.key, skipped)
        else:
            yield from _objects(store, infos, skipped)
    if not found:
        raise DatasetError(
            f"nothing matches {printable(source)}", hint="Quote the pattern in your shell; ** crosses folders."
        )
    if missing and is_listing:
        raise DatasetError(f"{len(missing)} of the listings do not exist, the first is {missing[0]}")
    yield from batches_of(problem_row(uri, "it does not exist, though the source names it") for uri in missing)


def _expanded(pattern: str, bucket: Store | None, missing: list[str]) -> Iterator[tuple[Store, Iterable[ObjectInfo]]]:
    """The store and matching objects of every alternative; ``missing`` takes the names that lead nowhere."""
    alternatives = expand_braces(pattern)
    with ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="lookup") as pool:
        while chunk := list(itertools.islice(alternatives, 16 * LOOKUP_THREADS)):
            plain = [text for text in chunk if not has_glob(text)]
            for text, (store, info) in zip(plain, pool.map(lambda text: _named(text, bucket), plain), strict=True):
                if info is None:
                    missing.append(printable(text if bucket is None else bucket.uri_of(text)))
                else:
                    yield store, [info]
            for text in chunk:
                if has_glob(text):
                    yield _globbed(text, bucket)


def _named(text: str, bucket: Store | None) -> tuple[Store, ObjectInfo | None]:
    if bucket is not None:
        return bucket, _lookup(bucket, text)
    root, key = split_uri(text)
    store = open_store(root)
    return store, _lookup(store, key)


def _globbed(text: str, bucket: Store | None) -> tuple[Store, Iterable[ObjectInfo]]:
    """The objects that match a glob; the listing is narrowed to the text before its first special character."""
    if bucket is None:
        root = literal_prefix(text).rpartition("/")[0] or "/"
        store, pattern = open_store(root), text[len(root.rstrip("/")) + 1 :]
    else:
        store, pattern = bucket, text
    matches = glob_to_regex(pattern).fullmatch
    return store, (info for info in store.list(literal_prefix(pattern)) if matches(info.key))
