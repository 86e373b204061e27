"""Tables that an output remembers beside its parts: append-only, named by their content, created once.

    lineage/<table>/[round=<n>/task=<task>/]part-<first 16 hex digits of SHA-256 of its rows>.parquet

Equal rows have equal bytes and so one name: writing them again changes nothing, and two writers cannot disagree.
What tables there are is told by a :class:`TableSpec`, which the floor that writes them makes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.store import ObjectInfo, Store
from tasks.output.layout import canonical_json
from tasks.output.store_files import open_parquet

LINEAGE_FOLDER = "lineage/"
SCHEMA_KEY = b"visionmill.schema"
ROW_GROUP_ROWS = 20_000

_PART = re.compile(r"lineage/(?P<table>[a-z_]+)/(?:round=\d{4}/task=[a-z]+/)?part-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A frozen table: what it is called, and its columns; another schema is another version.

    Args:
        name: of its folder below ``lineage/``.
        version: counts from 1.
        schema: all columns in their order; those that a row has no use for are null, never absent.
        statistics: columns that queries filter by; the others get no statistics in the Parquet footer.
    """

    name: str
    version: int
    schema: pa.Schema
    statistics: tuple[str, ...] = ()

    @property
    def schema_id(self) -> str:
        """As the footer states it, for example ``rounds.v1``."""
        return f"{self.name}.v{self.version}"

    def empty(self) -> pa.Table:
        """The table without rows."""
        return self.schema.empty_table()


def column(name: str, kind: pa.DataType, meaning: str, *, unit: str = "", nullable: bool = True) -> pa.Field:
    """A column that may be null."""
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def required(name: str, kind: pa.DataType, meaning: str, *, unit: str = "") -> pa.Field:
    """A column that is never null."""
    return column(name, kind, meaning, unit=unit, nullable=False)


def table_of(spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of exactly the frozen schema; columns that a row does not name are null.

    Raises:
        ValueError: a column that the schema does not have, or null where it may not be.
    """
    strangers = {column for row in rows for column in row} - set(spec.schema.names)
    if strangers:
        raise ValueError(f"{spec.name} has no column {', '.join(sorted(strangers))}")
    return checked(spec, pa.Table.from_pylist([dict(row) for row in rows], schema=spec.schema))


def checked(spec: TableSpec, table: pa.Table) -> pa.Table:
    """``table`` in the column order of the frozen schema, with its metadata.

    Raises:
        ValueError: columns or types differ, or a column that may not be null holds nulls.
    """
    schema = spec.schema
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"{spec.name} must have the columns {schema.names}, got {table.column_names}")
    table = table.select(schema.names).cast(schema)
    for each in schema:
        if not each.nullable and table[each.name].null_count:
            raise ValueError(f"{spec.name}.{each.name} may not be null, {table[each.name].null_count} rows are")
    return table


def content_digest(table: pa.Table) -> str:
    """SHA-256 over the values, column by column in their order, hex: the same for every Parquet writer and version."""
    digest = hashlib.sha256(canonical_json([table.num_rows, *table.column_names]))
    for name in table.column_names:
        values = table[name]
        _digest(digest, pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type))
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


def encode_table(spec: TableSpec, table: pa.Table) -> bytes:
    """The bytes of a table: a function of its rows alone (no time, no writer's name goes in)."""
    metadata = {SCHEMA_KEY: spec.schema_id.encode()}
    table = checked(spec, table).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=3,
        write_statistics=list(spec.statistics),
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def decode_table(spec: TableSpec, source: bytes) -> pa.Table:
    """The inverse of :func:`encode_table`. Raises ValueError when it holds another schema."""
    table = pq.read_table(pa.BufferReader(source))
    found = (table.schema.metadata or {}).get(SCHEMA_KEY, b"none").decode()
    if found != spec.schema_id:
        raise ValueError(f"the object holds {found}, not {spec.schema_id}")
    return checked(spec, table.replace_schema_metadata(None))


def append(store: Store, spec: TableSpec, table: pa.Table, *, round_number: int | None = None, task: str = "") -> str:
    """Make the rows exist, unless they do already; returns the key.

    Args:
        store: the output.
        spec: the table.
        table: its rows, in any column order.
        round_number, task: set for tables with many rows a round; readers prune by them.

    Raises:
        ValueError: no rows, or not the table's schema.
    """
    if table.num_rows == 0:
        raise ValueError(f"an append of no rows to {spec.name}")
    table = checked(spec, table)
    partition = "" if round_number is None else f"round={round_number:04d}/task={task}/"
    key = key_of(spec, content_digest(table), partition)
    if _PART.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no name for rows of {spec.name}: round and task must be plain")
    store.put_if_absent(key, encode_table(spec, table))
    return key


def key_of(spec: TableSpec, digest: str, partition: str = "") -> str:
    """Where rows with this content digest are, or would be."""
    return f"{LINEAGE_FOLDER}{spec.name}/{partition}part-{digest[:16]}.parquet"


def list_tables(store: Store) -> dict[str, list[ObjectInfo]]:
    """Table name to its objects, from one LIST; strangers among them are left out."""
    found: dict[str, list[ObjectInfo]] = {}
    for info in store.list(LINEAGE_FOLDER):
        match = _PART.fullmatch(info.key)
        if match is not None:
            found.setdefault(match["table"], []).append(info)
    return {name: sorted(infos, key=lambda info: info.key) for name, infos in found.items()}


def read(store: Store, spec: TableSpec, keys: Iterable[str] | None = None) -> pa.Table:
    """All rows of a table (or those of some objects), in the order of the keys."""
    if keys is None:
        keys = [info.key for info in list_tables(store).get(spec.name, [])]
    tables = list(_tables(store, spec, keys))
    return pa.concat_tables(tables) if tables else spec.empty()


def _tables(store: Store, spec: TableSpec, keys: Iterable[str]) -> Iterator[pa.Table]:
    for key in keys:
        try:
            with open_parquet(store, key, verify_checksums=True) as opened:
                yield checked(spec, opened.read().replace_schema_metadata(None))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"{store.uri_of(key)} is no readable part of {spec.name}: {error}") from error
