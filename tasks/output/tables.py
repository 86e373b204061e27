"""Tables that an output remembers beside its parts: append-only, named by their content, created once.

    lineage/<table>[.v<version>]/[round=<n>/kind=<kind>/]part-<first 16 hex digits of SHA-256 of its rows>.parquet

Equal rows have equal bytes and so one name: writing them again changes nothing, and two writers cannot disagree.
What tables there are is told by a :class:`TableSpec`, which the floor that writes them makes. Objects of an earlier
version stay where they are; whoever reads the table gets their rows as the present version has them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
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

_PART = re.compile(
    r"lineage/(?P<table>[a-z_]+)(?:\.v(?P<version>[1-9]\d*))?/(?:round=\d{4}/(?:kind|task)=[a-z_]+/)?"
    r"part-(?P<digest>[0-9a-f]{16})\.parquet"
)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A frozen table: what it is called, and its columns; another schema is another version.

    Args:
        name: of its folder below ``lineage/``.
        version: counts from 1; that of later ones is part of the folder's name.
        schema: all columns in their order; those that a row has no use for are null, never absent.
        statistics: columns that queries filter by; the others get no statistics in the Parquet footer.
        is_open: rows may have further columns behind these, by the kind of model that they are about.
        upgrades: earlier version -> the columns that differ, each as an SQL expression over those of that version;
            columns that are not named here had the same name and meaning.
    """

    name: str
    version: int
    schema: pa.Schema
    statistics: tuple[str, ...] = ()
    is_open: bool = False
    upgrades: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def schema_id(self) -> str:
        """As the footer states it, for example ``rounds.v1``."""
        return f"{self.name}.v{self.version}"

    @property
    def folder(self) -> str:
        """Where its objects lie, ending in a slash."""
        return f"{LINEAGE_FOLDER}{self.name}{'' if self.version == 1 else f'.v{self.version}'}/"

    def empty(self) -> pa.Table:
        """The table without rows."""
        return self.schema.empty_table()

    def columns_of(self, version: int) -> str:
        """The SQL of a SELECT over objects of a version that gives the present columns.

        Raises:
            ValueError: of a version that is later than this, or too old.
        """
        if version == self.version:
            return "*" if self.is_open else ", ".join(self.schema.names)
        if version not in self.upgrades:
            raise ValueError(
                f"it is {self.name}.v{version}, which this version of visionmill, with {self.schema_id}, cannot read"
            )
        changed = self.upgrades[version]
        names = [*self.schema.names, *(name for name in changed if name not in self.schema.names)]
        return ", ".join(f"{changed[name]} AS {name}" if name in changed else name for name in names)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """An object that holds rows of a table."""

    info: ObjectInfo
    version: int
    digest: str  # first digits of the digest of its rows, as that version has them


def column(name: str, kind: pa.DataType, meaning: str, *, unit: str = "", nullable: bool = True) -> pa.Field:
    """A column that may be null."""
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def required(name: str, kind: pa.DataType, meaning: str, *, unit: str = "") -> pa.Field:
    """A column that is never null."""
    return column(name, kind, meaning, unit=unit, nullable=False)


def table_of(spec: TableSpec, rows: Sequence[Mapping[str, Any]], further: Sequence[pa.Field] = ()) -> pa.Table:
    """Rows as a table of exactly the frozen schema; columns that a row does not name are null.

    Args:
        spec: the table.
        rows: column -> value.
        further: columns of a kind, behind those of an open table.

    Raises:
        ValueError: a column that the schema does not have, or null where it may not be.
    """
    schema = pa.schema([*spec.schema, *further])
    strangers = {column for row in rows for column in row} - set(schema.names)
    if strangers:
        raise ValueError(f"{spec.name} has no column {', '.join(sorted(strangers))}")
    return checked(spec, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def checked(spec: TableSpec, table: pa.Table) -> pa.Table:
    """``table`` in the column order of the frozen schema, with its metadata.

    Raises:
        ValueError: columns or types differ, or a column that may not be null holds nulls.
    """
    known = set(spec.schema.names)
    further = [_as_written(each) for each in table.schema if each.name not in known]
    if known - set(table.column_names) or (further and not spec.is_open):
        raise ValueError(f"{spec.name} must have the columns {spec.schema.names}, got {table.column_names}")
    schema = pa.schema([*spec.schema, *further])
    table = table.select(schema.names).cast(schema)
    for each in schema:
        if not each.nullable and table[each.name].null_count:
            raise ValueError(f"{spec.name}.{each.name} may not be null, {table[each.name].null_count} rows are")
    return table


def _as_written(each: pa.Field) -> pa.Field:
    """The column as it was before Parquet or DuckDB named its elements and noted where they found it."""
    kept = {name: value for name, value in (each.metadata or {}).items() if not name.startswith(b"PARQUET:")}
    kind = pa.list_(each.type.value_type) if pa.types.is_list(each.type) else each.type
    return pa.field(each.name, kind, each.nullable, kept)


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


def append(store: Store, spec: TableSpec, table: pa.Table, *, round_number: int | None = None, kind: str = "") -> str:
    """Make the rows exist, unless they do already; returns the key.

    Args:
        store: the output.
        spec: the table.
        table: its rows, in any column order.
        round_number, kind: set for tables with many rows a round; readers prune by them.

    Raises:
        ValueError: no rows, or not the table's schema.
    """
    if table.num_rows == 0:
        raise ValueError(f"an append of no rows to {spec.name}")
    table = checked(spec, table)
    partition = "" if round_number is None else f"round={round_number:04d}/kind={kind}/"
    key = f"{spec.folder}{partition}part-{content_digest(table)[:16]}.parquet"
    if _PART.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no name for rows of {spec.name}: round and kind must be plain")
    store.put_if_absent(key, encode_table(spec, table))
    return key


def list_tables(store: Store) -> dict[str, list[StoredRows]]:
    """Table name to its objects, from one LIST; strangers among them are left out."""
    found: dict[str, list[StoredRows]] = {}
    for info in store.list(LINEAGE_FOLDER):
        match = _PART.fullmatch(info.key)
        if match is not None:
            stored = StoredRows(info, int(match["version"] or 1), match["digest"])
            found.setdefault(match["table"], []).append(stored)
    return {name: sorted(each, key=lambda stored: stored.info.key) for name, each in found.items()}


def read(store: Store, spec: TableSpec, digests: Iterable[str] | None = None) -> pa.Table:
    """All rows of a table, in the order of the keys; where digests of rows are given, those of these objects.

    Raises:
        StoreError: damage, or an object of a version that cannot be read.
    """
    wanted = None if digests is None else {digest[:16] for digest in digests}
    chosen = [each for each in list_tables(store).get(spec.name, []) if wanted is None or each.digest in wanted]
    tables = [_rows(store, spec, each) for each in chosen]
    return pa.concat_tables(tables, promote_options="default") if tables else spec.empty()


def _rows(store: Store, spec: TableSpec, stored: StoredRows) -> pa.Table:
    try:
        columns = spec.columns_of(stored.version)
        with open_parquet(store, stored.info.key, verify_checksums=True) as opened:
            table = opened.read().replace_schema_metadata(None)
        return checked(spec, table if stored.version == spec.version else _selected(table, columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        uri = store.uri_of(stored.info.key)
        raise StoreError(
            f"{uri} is no readable part of {spec.name}: {error}",
            hint="If a later version of visionmill wrote this output, use that one; damage can only be restored.",
        ) from error


def _selected(table: pa.Table, columns: str) -> pa.Table:
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("stored", table)
        return connection.sql(f"SELECT {columns} FROM stored").to_arrow_table()
