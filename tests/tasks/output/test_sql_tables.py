"""Tables made by SQL have the types that DuckDB itself reads from Arrow, and cost no import of pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from infra.store import open_store
from tasks.loop.schemas import TABLES
from tasks.output.schema import widest_schema
from tasks.output.sql_tables import create_empty_table
from tasks.product import products
from tests.tasks.output.fake_output import FakeOutput, Item

SCHEMAS = {name: widest_schema(name) for name in products()} | {name: table.schema for name, table in TABLES.items()}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_columns_have_the_types_that_duckdb_gives_them(name: str) -> None:
    connection = duckdb.connect()
    create_empty_table(connection, "made", SCHEMAS[name])
    connection.register("registered", SCHEMAS[name].empty_table())
    described = [connection.execute(f"DESCRIBE {table}").fetchall() for table in ("made", "registered")]
    assert [row[:2] for row in described[0]] == [row[:2] for row in described[1]]


def test_the_command_query_imports_neither_pandas_nor_torch(tmp_path: Path) -> None:
    output = FakeOutput(open_store(str(tmp_path)))
    for _ in range(2):  # of two plans the later one counts
        output.commit([Item("a.jpg")])
    program = (
        "import sys; sys.argv[0] = 'visionmill'\n"
        "from flows.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'pandas', 'torch', 'prefect', 'ray'} & sys.modules.keys()))"
    )
    words = ["query", str(tmp_path), "SELECT count(*) AS n FROM items", "--format", "csv"]
    said = subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["n", "1", "[]"]
