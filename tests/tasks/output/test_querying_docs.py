"""docs/querying.md: its columns are the schema's, its queries and its Python run and say something."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from infra.store import open_store
from tasks.output.query import run_query
from tasks.output.schema_docs import renewed
from tasks.output.views import describe_views, views_of
from tests.tasks.output.fake_output import FakeOutput, Item

DOCUMENT = Path(__file__).parents[3] / "docs" / "querying.md"
TEXT = DOCUMENT.read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def output_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures, a tracked video, a failure, doubles of one class, and two versions."""
    output = FakeOutput(open_store(str(tmp_path_factory.mktemp("docs") / "out")))
    items = [Item(f"{n:02d}.jpg", num_instances=6) for n in range(30)]
    items += [Item("clip.mp4", frame=n, pts_s=n / 4, track=True) for n in range(4)]
    output.commit([*items, Item("broken.jpg", status="failed")], num_shards=3)
    output.new_version(score_threshold=0.9).commit([*items[1:], Item("broken.jpg", status="failed"), Item("00.jpg")])
    return output.store.uri


def test_the_columns_are_those_of_the_schema() -> None:
    assert renewed(TEXT) == TEXT, "run: python -m tasks.output.schema_docs docs/querying.md"


def test_a_document_without_a_place_for_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold"):
        renewed("# nothing here")


def test_there_are_eleven_queries() -> None:
    assert len(QUERIES) == 11


@pytest.mark.parametrize("number", range(11))
def test_every_query_has_an_answer(output_uri: str, number: int) -> None:
    assert run_query(output_uri, QUERIES[number]).num_rows > 0


def test_the_views_are_described_as_they_are(output_uri: str) -> None:
    views = describe_views(views_of(open_store(output_uri)))
    described = re.search(r"^\| `instances` \|.*\| `(.*?)` \|$", TEXT, re.MULTILINE)
    assert described is not None
    assert described[1].split(", ") == views["instances"]
    assert all(f"| `{view}` |" in TEXT for view in views)


def test_the_python_runs(output_uri: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    imports, *expressions = map(ast.unparse, ast.parse(code).body)
    scope: dict[str, Any] = {"output": output_uri}
    exec(imports, scope)
    by_duckdb, by_polars, by_pandas, by_pyarrow = (eval(each, scope) for each in expressions)
    assert by_duckdb.fetchall() == [(70,)]
    assert by_polars["names"].count() == by_pandas.names.count()
    assert by_pyarrow.num_rows == 68
