"""A COCO annotation file as a listing of its images; annotations are not read here.

``file_name`` is relative to the images' root: the JSON's own folder, or where COCO's own layout has the images, unless
another is given. COCO files know no etags, so the root is listed once and joined by name; a named image that is not
there stays in the inventory and ends as a failed row.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import BucketMissing, DatasetError
from infra.store import Store, absolute_uri, folder_of, open_store, resolve_name, split_uri
from tasks.ingest.json_stream import JsonBrokenError, iter_array
from tasks.ingest.spill import workbench
from tasks.media.endings import kind_of
from tasks.output.entries import BATCH_ROWS, INVENTORY_SCHEMA, Row, Skipped, batches_of, is_unicode
from tasks.records import MISSING_ETAG

_JOIN = f"""
    SELECT n.uri, coalesce(o.etag, '{MISSING_ETAG}') AS etag, coalesce(o.size_bytes, 0)::BIGINT AS size_bytes, n.media,
           NULL::VARCHAR AS container, NULL::BIGINT AS "offset", NULL::BIGINT AS length, NULL::VARCHAR AS problem
    FROM read_parquet(?) n LEFT JOIN read_parquet(?) o ON n.uri = o.uri
"""


def coco_pieces(
    store: Store, key: str, *, images_root: str | None, folder: Path, skipped: Skipped
) -> Iterator[pa.RecordBatch]:
    """The images of an annotation file, with the etags and sizes of what lies under those names.

    Raises:
        DatasetError: no COCO file, or none of its images exists below the root.
    """
    uri = store.uri_of(key)
    roots = image_roots(uri, images_root)
    for root in roots:
        with workbench(folder) as (connection, scratch):
            paths, named, found = _looked_up(
                connection, scratch, store, key, root, skipped if root == roots[0] else None
            )
            if not named:
                raise DatasetError(f"{uri} names no images", hint="A COCO file has a top-level array 'images'.")
            if not found:
                continue
            reader = connection.sql(_JOIN, params=paths).to_arrow_reader(BATCH_ROWS)
            for batch in cast(pa.RecordBatchReader, reader):
                yield batch.cast(INVENTORY_SCHEMA)
            return
    raise DatasetError(
        f"none of the {named} images named in {uri} exists below {', '.join(roots)}",
        hint="Say where they are with the images' root (file_name is relative to it).",
    )


def image_roots(uri: str, images_root: str | None = None) -> list[str]:
    """Where the images of an annotation file are looked for: its own folder, then where COCO's own layout has them.

    ``x/annotations/instances_val2017.json`` -> ``x/annotations``, ``x/val2017``, ``x/images/val2017``, ``x/images``,
    ``x``; and the same beside the file.

    Args:
        images_root: where the caller says they are. It may hold the splits, but nothing is looked for beside it.
    """
    folder = absolute_uri(images_root) if images_root else folder_of(uri)
    stem = uri.rpartition("/")[2].rpartition(".")[0]
    subset = stem.partition("_")[2] if "_" in stem else stem
    above = folder.rpartition("/")[0] or folder
    parts = (subset, f"images/{subset}", "images")
    inside = [f"{folder}/{part}" for part in parts]
    if images_root:
        return [folder, *inside]
    return list(dict.fromkeys([folder, *(f"{above}/{part}" for part in parts), *inside, above]))


def _looked_up(
    connection: duckdb.DuckDBPyConnection, scratch: Path, store: Store, key: str, root: str, skipped: Skipped | None
) -> tuple[list[str], int, int]:
    """The files of :data:`_JOIN` for one root, how many images are named, and how many of them are there."""
    names_path, objects_path = scratch / "names.parquet", scratch / "objects.parquet"
    common = _Prefix()
    named = _write(names_path, (common.seen(row) for row in _named(store, key, root, skipped or Skipped())))
    try:
        _write(objects_path, _objects(root, common.text))
    except BucketMissing:  # no such folder
        _write(objects_path, iter(()))
    paths = [str(names_path), str(objects_path)]
    [(found,)] = connection.execute(f"SELECT count(*) FROM ({_JOIN}) WHERE etag <> '{MISSING_ETAG}'", paths).fetchall()
    return paths, named, found


class _Prefix:
    """The text that all URIs seen so far begin with."""

    def __init__(self) -> None:
        self.text: str | None = None

    def seen(self, row: Row) -> Row:
        if self.text is None:
            self.text = row.uri
        elif not row.uri.startswith(self.text):
            self.text = posixpath.commonprefix([self.text, row.uri])
        return row


def _named(store: Store, key: str, root: str, skipped: Skipped) -> Iterator[Row]:
    uri = store.uri_of(key)
    with store.open(key) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
        try:
            for image in iter_array(text, "images"):
                name = image.get("file_name") if isinstance(image, dict) else None
                if not isinstance(name, str) or not name or not is_unicode(name):
                    skipped.add("COCO image without a file_name", [], 1)
                elif (item := resolve_name(root, name)) is None:
                    skipped.add("COCO file_name that leads out of the bucket", [name], 1)
                else:
                    yield Row(item, MISSING_ETAG, 0, "video" if kind_of(name) == "video" else "image")
        except (JsonBrokenError, UnicodeDecodeError) as error:
            raise DatasetError(f"{uri} cannot be read: {error}", hint="Is it a whole COCO annotation file?") from error


def _objects(root: str, common: str | None) -> Iterator[Row]:
    """What lies below the root, narrowed to the common beginning of the names."""
    store_root, key = split_uri(f"{root}/x")
    store = open_store(store_root)
    prefix = key[:-1]
    base = store.uri_of(prefix)
    if common is not None and common.startswith(base):
        prefix += common[len(base) :].rpartition("/")[0]
        prefix += "/" if prefix and not prefix.endswith("/") else ""
    for info in store.list(prefix):
        if is_unicode(info.key):
            yield Row(store.uri_of(info.key), info.etag, info.size_bytes, "image")


def _write(path: Path, rows: Iterator[Row]) -> int:
    count = 0
    with pq.ParquetWriter(path, INVENTORY_SCHEMA, compression="zstd") as writer:
        for batch in batches_of(rows):
            writer.write_batch(batch)
            count += batch.num_rows
    return count
