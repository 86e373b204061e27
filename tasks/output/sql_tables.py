"""Small tables of a DuckDB connection, made by SQL.

Registering an Arrow table is shorter, but makes DuckDB import pandas, if it is installed, to ask whether that is what
it was given: half of the time of a short query.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

_TYPES = {
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.bool_(): "BOOLEAN",
    pa.uint8(): "UTINYINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
}


def create_empty_table(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    """A table without rows that has the columns of a schema."""
    columns = ", ".join(f'"{field.name}" {sql_type(field.type)}' for field in schema)
    connection.execute(f"CREATE TABLE {name} ({columns})")


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type. Raises KeyError for one that no schema of ours has."""
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_map(kind):
        return f"MAP({sql_type(kind.key_type)}, {sql_type(kind.item_type)})"
    if pa.types.is_struct(kind):
        fields = ", ".join(f'"{field.name}" {sql_type(field.type)}' for field in kind)
        return f"STRUCT({fields})"
    return _TYPES[kind]
