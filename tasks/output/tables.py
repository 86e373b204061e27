"""The loop's tables as objects of the output: append-only, named by their content, created once.

    lineage/<table>/[round=<n>/task=<task>/]part-<first 16 hex digits of SHA-256 of its rows>.parquet

Equal rows have equal bytes and so one name: writing them again changes nothing, and two writers cannot disagree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError, UsageError
from infra.store import ObjectInfo, Store
from tasks.output.layout import canonical_json
from tasks.output.store_files import open_parquet
from tasks.output.table_schemas import SCHEMAS

LINEAGE_FOLDER = "lineage/"
SCHEMA_KEY = b"visionmill.schema"
ROW_GROUP_ROWS = 20_000

_PART = re.compile(r"lineage/(?P<table>[a-z_]+)/(?:round=\d{4}/task=[a-z]+/)?part-[0-9a-f]{16}\.parquet")
_STATISTICS = (
    "image_id", "round", "class_id", "class_name", "decision", "task", "label_id", "model_id", "candidate_id",
    "train_set_id", "threshold_set_id", "split", "group_id",
)  # fmt: skip


def table_of(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of exactly the frozen schema; columns that a row does not name are null.

    Raises:
        ValueError: a column that the schema does not have, or null where it may not be.
    """
    _, schema = SCHEMAS[name]
    strangers = {column for row in rows for column in row} - set(schema.names)
    if strangers:
        raise ValueError(f"{name} has no column {', '.join(sorted(strangers))}")
    return checked(name, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def checked(name: str, table: pa.Table) -> pa.Table:
    """``table`` in the column order of the frozen schema, with its metadata.

    Raises:
        ValueError: columns or types differ, or a column that may not be null holds nulls.
    """
    _, schema = SCHEMAS[name]
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"{name} must have the columns {schema.names}, got {table.column_names}")
    table = table.select(schema.names).cast(schema)
    for each in schema:
        if not each.nullable and table[each.name].null_count:
            raise ValueError(f"{name}.{each.name} may not be null, {table[each.name].null_count} rows are")
    return table


def content_digest(table: pa.Table) -> str:
    """SHA-256 over the values, column by column in their order, hex: the same for every Parquet writer and version."""
    digest = hashlib.sha256(canonical_json([table.num_rows, *table.column_names]))
    for name in table.column_names:
        column = table[name]
        _digest(digest, pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type))
    return digest.hexdigest()


def _digest(digest: Any, array: pa.Array) -> None:
    """Feed type, nulls and values of an array; what lies under a null does not count."""
    kind = array.type
    digest.update(str(kind).encode() + np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    array = array.drop_null()
    if pa.types.is_list(kind) or pa.types.is_map(kind):
        digest.update(np.diff(array.offsets.to_numpy()).astype("<i8").tobytes())
        if pa.types.is_list(kind):
            return _digest(digest, array.flatten())
        start, stop = (array.offsets[0].as_py(), array.offsets[-1].as_py()) if len(array) else (0, 0)
        for part in (array.keys, array.items):
            _digest(digest, part.slice(start, stop - start))
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        data = array.cast(pa.binary())
        digest.update(pa.compute.binary_length(data).to_numpy().astype("<i8").tobytes())
        for value in data.to_pylist():
            digest.update(value)
    elif pa.types.is_timestamp(kind):
        digest.update(array.cast(pa.int64()).to_numpy().astype("<i8").tobytes())
    else:
        values = array.to_numpy(zero_copy_only=False)
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())


def encode_table(name: str, table: pa.Table) -> bytes:
    """The bytes of a table: a function of its rows alone (no time, no writer's name goes in)."""
    schema_id, _ = SCHEMAS[name]
    table = checked(name, table)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema.with_metadata({SCHEMA_KEY: schema_id.encode()}),
        compression="zstd",
        compression_level=3,
        write_statistics=[column for column in _STATISTICS if column in table.schema.names],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table.replace_schema_metadata({SCHEMA_KEY: schema_id.encode()}), ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def decode_table(name: str, source: bytes) -> pa.Table:
    """The inverse of :func:`encode_table`. Raises ValueError when it holds another schema."""
    table = pq.read_table(pa.BufferReader(source))
    found = (table.schema.metadata or {}).get(SCHEMA_KEY, b"none").decode()
    if found != SCHEMAS[name][0]:
        raise ValueError(f"the object holds {found}, not {SCHEMAS[name][0]}")
    return checked(name, table.replace_schema_metadata(None))


def append(store: Store, name: str, table: pa.Table, *, round_number: int | None = None, task: str = "") -> str:
    """Make the rows exist, unless they do already; returns the key.

    Args:
        store: the loop's output.
        name: the table.
        table: its rows, in any column order.
        round_number, task: set for tables with many rows a round; readers prune by them.

    Raises:
        ValueError: no rows, or not the table's schema.
    """
    if table.num_rows == 0:
        raise ValueError(f"an append of no rows to {name}")
    table = checked(name, table)
    partition = "" if round_number is None else f"round={round_number:04d}/task={task}/"
    key = key_of(name, content_digest(table), partition)
    if _PART.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no name for rows of {name}: round and task must be plain")
    store.put_if_absent(key, encode_table(name, table))
    return key


def key_of(name: str, digest: str, partition: str = "") -> str:
    """Where rows with this content digest are, or would be."""
    return f"{LINEAGE_FOLDER}{name}/{partition}part-{digest[:16]}.parquet"


def list_tables(store: Store) -> dict[str, list[ObjectInfo]]:
    """Table name to its objects, from one LIST; strangers among them are left out."""
    found: dict[str, list[ObjectInfo]] = {}
    for info in store.list(LINEAGE_FOLDER):
        match = _PART.fullmatch(info.key)
        if match is not None and match["table"] in SCHEMAS:
            found.setdefault(match["table"], []).append(info)
    return {name: sorted(infos, key=lambda info: info.key) for name, infos in found.items()}


def read(store: Store, name: str, keys: Iterable[str] | None = None) -> pa.Table:
    """All rows of a table (or those of some objects), in the order of the keys."""
    if name not in SCHEMAS:
        raise UsageError(f"there is no table {name!r}", hint=f"one of {', '.join(SCHEMAS)}")
    if keys is None:
        keys = [info.key for info in list_tables(store).get(name, [])]
    tables = list(_tables(store, name, keys))
    return pa.concat_tables(tables) if tables else SCHEMAS[name][1].empty_table()


def _tables(store: Store, name: str, keys: Iterable[str]) -> Iterator[pa.Table]:
    for key in keys:
        try:
            with open_parquet(store, key, verify_checksums=True) as opened:
                yield checked(name, opened.read().replace_schema_metadata(None))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"{store.uri_of(key)} is no readable part of {name}: {error}") from error
