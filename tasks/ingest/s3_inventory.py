"""S3 Inventory: a bucket's own daily listing, named by its ``manifest.json``; Parquet or CSV.gz data files.

It is read like a folder: objects that are neither image nor video nor tar are left out and counted, because nobody
chose them. It is no snapshot of one moment: an object that is gone or changed since ends as a failed row, and the next
inventory brings it back under its new etag. Only the latest versions count, delete markers do not. CSV keys are
URL-encoded (a ``+`` is a space, a plus sign is ``%2B``); Parquet keys are not.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from infra.errors import DatasetError, ObjectGone
from infra.store import Store, folder_of, is_local, open_store
from tasks.ingest.listings import etags_or_unknown, to_pieces
from tasks.ingest.tar_sources import TarTask
from tasks.output.entries import BATCH_ROWS, INVENTORY_SCHEMA, Skipped

_PARQUET_NAMES = {
    "Key": "key",
    "Size": "size",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}
_CSV_TYPES = {
    "Key": pa.string(),
    "Size": pa.int64(),
    "ETag": pa.string(),
    "IsLatest": pa.bool_(),
    "IsDeleteMarker": pa.bool_(),
}


def is_manifest(head: bytes) -> bool:
    """Whether the first bytes of a JSON file are those of an inventory's manifest."""
    return b'"sourceBucket"' in head and b'"fileFormat"' in head


def inventory_pieces(store: Store, key: str, skipped: Skipped) -> Iterator[pa.RecordBatch | TarTask]:
    """The objects that an inventory lists.

    Raises:
        DatasetError: a manifest or data file that is damaged, missing, or of a format that is not read (ORC).
    """
    uri = store.uri_of(key)
    manifest = _manifest(store, key, uri)
    bucket = str(manifest["sourceBucket"])
    columns = [name.strip() for name in str(manifest.get("fileSchema", "")).split(",")]
    for file in cast("list[dict[str, object]]", manifest["files"]):
        data_store, data_key = _data_file(store, key, manifest, str(file["key"]))
        data_uri = data_store.uri_of(data_key)
        try:
            with data_store.open(data_key) as stream:
                is_csv = manifest["fileFormat"] == "CSV"
                tables = _csv(stream, columns) if is_csv else _parquet(stream)
                for table in tables:
                    yield from to_pieces(_items(table, bucket), skipped, keep_others=False)
        except (pa.ArrowInvalid, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetError(f"the inventory's data file {data_uri} cannot be read: {error}") from error


def _manifest(store: Store, key: str, uri: str) -> dict[str, object]:
    try:
        manifest = json.loads(store.get(key))
    except ValueError as error:
        raise DatasetError(f"the manifest {uri} is no JSON: {error}") from error
    files = manifest.get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) and "key" in file for file in files):
        raise DatasetError(f"the manifest {uri} names no data files", hint="Is it an S3 Inventory manifest.json?")
    if manifest.get("fileFormat") not in ("CSV", "Parquet"):
        raise DatasetError(
            f"the inventory {uri} has the format {manifest.get('fileFormat')!r}",
            hint="Configure the S3 Inventory to write Parquet or CSV.",
        )
    if manifest["fileFormat"] == "CSV" and "Key" not in str(manifest.get("fileSchema", "")):
        raise DatasetError(f"the manifest {uri} states no fileSchema with a Key column")
    return cast("dict[str, object]", manifest)


def _data_file(store: Store, manifest_key: str, manifest: dict[str, object], key: str) -> tuple[Store, str]:
    """Where a data file lies: in the destination bucket as stated, or beside a manifest that was copied elsewhere."""
    name = key.rpartition("/")[2]
    folder = manifest_key.rpartition("/")[0]
    above = folder.rpartition("/")[0]
    beside = [f"{folder}/{name}", f"{folder}/data/{name}", f"{above}/data/{name}"]
    places = [(store.uri, place.lstrip("/")) for place in beside]
    destination = f"s3://{str(manifest.get('destinationBucket', '')).rpartition(':')[2]}"
    if is_local(store.uri):
        places.append((folder_of(store.uri), f"data/{name}"))
    else:
        places.insert(0, (store.uri, key))
    if destination not in ("s3://", store.uri):
        places.append((destination, key))
    for root, place in places:
        candidate = store if root == store.uri else open_store(root)
        try:
            candidate.info(place)
        except ObjectGone:
            continue
        return candidate, place
    raise DatasetError(
        f"the data file {key!r} of the inventory {store.uri_of(manifest_key)} does not exist",
        hint="Copy the inventory's data folder along with its manifest.",
    )


def _parquet(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Batches with the columns key, size, e_tag and the version flags, as far as they are there."""
    file = pq.ParquetFile(stream)
    names = [name for name in _PARQUET_NAMES.values() if name in file.schema_arrow.names]
    if "key" not in names:
        raise pa.ArrowInvalid("it has no column 'key'")
    yield from file.iter_batches(batch_size=BATCH_ROWS, columns=names)


def _csv(stream: BinaryIO, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """As :func:`_parquet`, from CSV without a header; ``columns`` come from the manifest."""
    wanted = [name for name in _PARQUET_NAMES if name in columns]
    with gzip.open(stream) as unpacked:
        reader = pa_csv.open_csv(
            cast(BinaryIO, unpacked),
            read_options=pa_csv.ReadOptions(column_names=columns, block_size=4 << 20),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted, column_types=_CSV_TYPES, strings_can_be_null=False, null_values=[""]
            ),
        )
        for batch in reader:
            keys = pa.array([unquote_plus(key) for key in batch["Key"].to_pylist()], pa.string())
            arrays = [keys if name == "Key" else batch[name] for name in wanted]
            yield pa.RecordBatch.from_arrays(arrays, names=[_PARQUET_NAMES[name] for name in wanted])


def _items(objects: pa.RecordBatch, bucket: str) -> pa.RecordBatch:
    """Inventory columns from an S3 Inventory's; ``media`` is left to the name."""
    names = objects.schema.names
    if "is_latest" in names:
        objects = objects.filter(pc.fill_null(objects["is_latest"], True))
    if "is_delete_marker" in names:
        objects = objects.filter(pc.invert(pc.fill_null(objects["is_delete_marker"], False)))
    count = objects.num_rows
    sizes = (
        pc.fill_null(pc.cast(objects["size"], pa.int64()), 0) if "size" in names else pa.array([0] * count, pa.int64())
    )
    etags = pc.cast(objects["e_tag"], pa.string()) if "e_tag" in names else pa.nulls(count, pa.string())
    uris = pc.binary_join_element_wise(f"s3://{bucket}", pc.cast(objects["key"], pa.string()), "/")
    columns = {"uri": uris, "size_bytes": sizes, "etag": etags_or_unknown(etags, sizes)}
    schema = pa.schema([field.with_nullable(True) for field in INVENTORY_SCHEMA])
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
