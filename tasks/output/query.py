"""Ask a job's output in SQL; reading is all that is possible."""

from __future__ import annotations

import re

import duckdb
import pyarrow as pa

from infra.errors import StoreError, UsageError, VisionmillError
from infra.store import open_store
from tasks.output.narrowing import narrow
from tasks.output.views import Views, describe_views, views_of

_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b\s*)?(\([^)]*\)\s*)?", re.IGNORECASE)


def run_query(output: str, sql: str, *, product: str | None = None) -> pa.Table:
    """The answer to one SELECT (or EXPLAIN) over the views of an output.

    Args:
        output: folder or ``s3://bucket/prefix`` of a job's output.
        sql: one statement over the views of :mod:`tasks.output.views` and those of the product.
        product: whose rows, where the output holds those of several.

    Raises:
        UsageError: for anything but one reading statement, and for mistakes in it; the hint names views and columns.
            Also for a place that holds no output of a job.
        StoreError: when the results cannot be read.
    """
    views = views_of(open_store(output), product=product)
    try:
        views.connection.execute("SET lock_configuration = true")
        return answer(views, sql)
    finally:
        views.connection.close()


def answer(views: Views, sql: str) -> pa.Table:
    """As :func:`run_query`, over views that are open."""
    connection = views.connection
    try:
        _require_reading(connection, sql)
        relation = connection.sql(sql)
        return pa.table({"result": pa.array([], pa.string())}) if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise _translated(error, views) from None


def choose(views: Views, *, min_score: float = 0.0, where: str | None = None) -> None:
    """Let open views show only some of the newest results.

    A condition that names columns of ``items`` alone keeps items whole. Any other one is about the product's things:
    then items without such a thing are left out, unless they failed.

    Args:
        views: of which nothing is narrowed yet.
        min_score: less sure things are left out; see :func:`tasks.output.narrowing.narrow`.
        where: what stands behind WHERE.

    Raises:
        UsageError: a condition that is none, or more than a condition; the hint names views and columns.
        StoreError: when the results cannot be read.
    """
    if views.product is None:
        return
    try:
        condition = {} if where is None else {_speaks_of(views, where): _enclosed(where)}
        narrow(views.connection, views.product, min_score=min_score, **condition)  # type: ignore[arg-type]
    except duckdb.Error as error:
        raise _translated(error, views) from None


def _enclosed(where: str) -> str:
    return f"(\n{where}\n)"  # a comment at its end must not swallow the parenthesis


def _speaks_of(views: Views, where: str) -> str:
    """What a condition is about: the keyword of :func:`narrow`."""
    _require_reading(views.connection, f"SELECT 1 FROM items WHERE {_enclosed(where)}")
    things = None if views.product is None else views.product.things
    tried = {"items": "of_items"} | ({} if things is None else {things.view: "of_things"})
    problem = ""
    for view, keyword in tried.items():
        try:
            views.connection.sql(f"SELECT 1 FROM {view} WHERE {_enclosed(where)}")
            return keyword
        except duckdb.BinderException as error:
            problem = _short(error)
    raise UsageError(f"{where!r} is no condition over {' or '.join(tried)}: {problem}", hint=available(views))


def _require_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UsageError(f"one SQL statement at a time, got {len(statements)}", hint="remove all but one SELECT")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        explained = connection.extract_statements(_EXPLAIN.sub("", sql, count=1))
        kind = explained[0].type if len(explained) == 1 else kind
    if kind != duckdb.StatementType.SELECT:
        raise UsageError(
            f"queries only read, but this is a statement of the kind {kind.name}",
            hint="start with SELECT, WITH, FROM, DESCRIBE, SUMMARIZE or EXPLAIN; to write files use `visionmill export`"
            " or --format csv",
        )


def _translated(error: duckdb.Error, views: Views) -> VisionmillError:
    failure = None if views.filesystem is None else views.filesystem.failure
    if isinstance(failure, VisionmillError):
        return failure
    if isinstance(error, duckdb.IOException) or _names_a_part(
        str(error), views
    ):  # gone: DuckDB then tries it as a folder
        return StoreError(f"results below {views.listing.store.uri} could not be read: {_short(error)}")
    return UsageError(f"the query was not understood: {_short(error)}", hint=available(views))


def _names_a_part(text: str, views: Views) -> bool:
    return any(part.info.key in text for version in views.listing.versions for part in version.parts)


def _short(error: duckdb.Error) -> str:
    """DuckDB's message without its guesses; of a traceback (in a function of the product) the last line."""
    if "Traceback (most recent call last)" in str(error):
        return str(error).strip().splitlines()[-1]
    return str(error).split("\nCandidate", 1)[0].split("\n\tCandidate", 1)[0].strip()


def available(views: Views) -> str:
    """Views with their columns and the functions of the product, in words."""
    described = [f"{view}({', '.join(columns)})" for view, columns in describe_views(views).items()]
    functions = () if views.product is None else views.product.function_words
    return "views: " + "; ".join(described) + (f". Functions: {', '.join(functions)}" if functions else "")
