"""Committed Parquet as SQL views: ``items``, ``failures``, ``all_items``, those of the product and of higher floors.

The list of files is taken once, when the connection is opened: a query sees the same rows from start to
end while a job goes on committing. Every view prunes: only the columns that a query names are read, and
row groups whose ``uri`` cannot match are skipped (rows are sorted by it).

The latest rows of a version. Plan n+1 is only made when plan n is committed, so the plan number orders
the rows. A row is outdated when a later plan holds the same (uri, frame), or the same uri with another
etag: when a video is replaced by a shorter one, its old tail must not live on. Rows of later plans are few
(what is new, changed or retried), so the join runs against a small table of keys, and an output with one
plan needs no join at all.
"""

from __future__ import annotations

import importlib
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from infra.store import ObjectInfo, Store, is_local, open_store
from tasks.output.listing import (
    ListedVersion,
    Listing,
    Part,
    held_products,
    list_committed,
    only_version,
    plan_of_shards,
    product_in,
)
from tasks.output.narrowing import narrow
from tasks.output.schema import COMMON, widest_schema
from tasks.output.sql_tables import create_empty_table
from tasks.output.store_files import PROTOCOL, StoreFileSystem, path_of
from tasks.product import Product, called

MORE_VIEWS = ("tasks.loop.lineage",)
"""Modules that bring further views as ``VIEWS``; loaded when views are opened, so they must be light: no torch."""

MEMORY_SHARE = "40%"  # of the machine's memory, for one connection

_GLOB_CHARACTERS = frozenset("*?[]{}")


@dataclass(frozen=True, slots=True)
class MoreViews:
    """Views over objects that are no parts of a job.

    Args:
        names: of the views.
        objects: store -> what they read, by a key of their own.
        create: makes the views; takes the same keys with paths as DuckDB is to open them.
    """

    names: tuple[str, ...]
    objects: Callable[[Store], Mapping[str, Sequence[ObjectInfo]]]
    create: Callable[[duckdb.DuckDBPyConnection, Mapping[str, Sequence[str]]], None]


@dataclass(frozen=True, slots=True)
class Views:
    """An open connection and what it shows.

    Args:
        product: whose rows; None for a loop's own output, which holds tables and no rows.
        filesystem: what it reads through; None is DuckDB's own, for folders.
        min_score: what scores less is not shown.
    """

    connection: duckdb.DuckDBPyConnection
    product: Product | None
    listing: Listing
    filesystem: StoreFileSystem | None
    min_score: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The views over rows, the most useful first."""
        own = () if self.product is None else self.product.views
        return ("items", *own, "failures", "all_items")


def open_views(output_uri: str, *, product: str | None = None, native: bool = True) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views over what is committed in an output at this moment.

    Args:
        output_uri: folder or ``s3://bucket/prefix`` of a job's output. Nothing committed yet: views without rows.
        product: whose rows, where the output holds those of several.
        native: let DuckDB read folders itself (the fastest way); False goes through the store there, too.

    The connection cannot reach anything but the listed files: no other file, no network, no extension.

    Raises:
        UsageError: the place holds no output of a job, or rows of several products and none is named.
    """
    return views_of(open_store(output_uri), product=product, native=native).connection


def views_of(
    store: Store,
    *,
    product: str | None = None,
    native: bool = True,
    min_score: float = 0.0,
    version: str | None = None,
) -> Views:
    """As :func:`open_views`, for an open store.

    Args:
        min_score: in [0, 1]; things that score less are in none of the views but ``all_items``.
        version: the fingerprint, or its beginning, of the version that is shown as if it were the only one.

    Raises:
        UsageError: also for a version that is not there, or a beginning of several.
    """
    more = [(each, each.objects(store)) for each in _more_views()]
    has_tables = any(infos for _, found in more for infos in found.values())
    chosen = None if product is None and has_tables and not held_products(store) else product_in(store, product)
    listing = Listing(store, "", (), ()) if chosen is None else list_committed(store, chosen.name)
    listing = listing if version is None else only_version(listing, version)
    connection = duckdb.connect(":memory:")
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    connection.execute("SET python_enable_replacements = false; SET TimeZone = 'UTC'")
    # large sorts and joins go to disk instead of taking a machine's memory away from everybody else
    scratch = (
        Path(tempfile.gettempdir()) / f"visionmill-duckdb-{uuid.uuid4().hex}"
    )  # made when needed, removed at close
    connection.execute(f"SET temp_directory = {_quoted(str(scratch))}; SET memory_limit = '{MEMORY_SHARE}'")
    objects = [part.info for version in listing.versions for part in version.parts]
    objects += [info for _, found in more for infos in found.values() for info in infos]
    filesystem = _choose_reader(connection, store, objects, native=native)
    if chosen is not None and chosen.functions is not None:
        chosen.functions(connection)
    _create_views(connection, listing, chosen, plain_paths=filesystem is None)

    def path(info: ObjectInfo) -> str:
        return store.uri_of(info.key) if filesystem is None else path_of(info.key)

    for each, found in more:
        each.create(connection, {name: [path(info) for info in infos] for name, infos in found.items()})
    connection.execute("SET enable_external_access = false")
    if chosen is not None:
        narrow(connection, chosen, min_score=min_score)
    return Views(connection, chosen, listing, filesystem, min_score)


def _more_views() -> list[MoreViews]:
    return [importlib.import_module(name).VIEWS for name in MORE_VIEWS]


def _choose_reader(
    connection: duckdb.DuckDBPyConnection, store: Store, objects: list[ObjectInfo], *, native: bool
) -> StoreFileSystem | None:
    """Folders are read by DuckDB itself, buckets (and folders whose name is a pattern to DuckDB) through the store."""
    if native and is_local(store.uri) and not _GLOB_CHARACTERS & set(store.uri):
        connection.execute("SET allowed_paths = ?", [[store.uri_of(info.key) for info in objects]])
        return None
    filesystem = StoreFileSystem(store, objects)
    connection.register_filesystem(filesystem)
    # committed objects never change: what is cached needs no check
    connection.execute("SET validate_external_file_cache = 'NO_VALIDATION'")
    connection.execute("SET allowed_directories = ?", [[f"{PROTOCOL}://"]])
    return filesystem


def _create_views(
    connection: duckdb.DuckDBPyConnection, listing: Listing, product: Product | None, *, plain_paths: bool
) -> None:
    schema = pa.schema(COMMON) if product is None else widest_schema(product.name)
    create_empty_table(connection, "_nothing", schema)
    columns = _Columns(connection, listing.store, plain_paths)
    filled = [version for version in listing.versions if version.parts]
    everything = [columns.of(version, version.parts) for version in filled]
    if not filled:
        everything = ["SELECT *, CAST(NULL AS VARCHAR) AS version FROM _nothing"]
    connection.execute("CREATE VIEW all_items AS " + " UNION ALL BY NAME ".join(everything))
    newest = listing.newest
    items = "SELECT * FROM all_items" if newest is None else _latest(columns, newest)
    connection.execute(f"CREATE VIEW items AS {items}")
    common = ", ".join(field.name for field in COMMON)
    connection.execute(f"CREATE VIEW failures AS SELECT {common}, version FROM items WHERE status <> 'ok'")
    if product is None:
        return
    for name, select in product.views.items():
        with called(product, f"the view {name!r}"):
            connection.execute(f"CREATE VIEW {name} AS {select}")


class _Columns:
    """All columns that rows of a product may have; those that a version lacks are null.

    Args:
        connection: with an empty table ``_nothing`` of all columns.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, store: Store, plain_paths: bool) -> None:
        self.connection, self.store, self._plain_paths = connection, store, plain_paths
        self.types = {name: kind for name, kind, *_ in connection.execute("DESCRIBE _nothing").fetchall()}

    def of(self, version: ListedVersion, parts: tuple[Part, ...]) -> str:
        """A SELECT over the files of some parts of a version: the columns, and the version."""
        keys = [part.info.key for part in parts]
        paths = [_quoted(self.store.uri_of(key) if self._plain_paths else path_of(key)) for key in keys]
        # All parts of a version have one schema, so the first one tells.
        present = set(self.connection.sql(_reading(paths[:1])).columns)
        columns = ", ".join(
            name if name in present else f"CAST(NULL AS {kind}) AS {name}" for name, kind in self.types.items()
        )
        return f"SELECT {columns}, '{version.fingerprint}' AS version FROM ({_reading(paths)})"


def _reading(quoted_paths: list[str]) -> str:
    return f"SELECT * FROM read_parquet([{', '.join(quoted_paths)}], hive_partitioning = false)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _latest(columns: _Columns, version: ListedVersion) -> str:
    """The SELECT of a version's latest rows; see the module's text for the rule."""
    plan_of = plan_of_shards(columns.store, version) if len(version.plans) > 1 else {}
    first_plan = min((plan_of.get(part.shard_id, 0) for part in version.parts), default=0)
    first = tuple(part for part in version.parts if plan_of.get(part.shard_id, 0) == first_plan)
    later = tuple(part for part in version.parts if plan_of.get(part.shard_id, 0) != first_plan)
    if not later:
        return columns.of(version, first)
    shards = [part.shard_id for part in later]
    _create_plans_table(columns.connection, shards, [plan_of[shard_id] for shard_id in shards])
    rows = columns.of(version, later)
    columns.connection.execute(f"CREATE VIEW _later AS SELECT * FROM ({rows}) JOIN _plans USING (shard_id)")
    names = ", ".join(f"r.{name}" for name in [*columns.types, "version"])
    return f"""
        SELECT {names}
        FROM (SELECT *, {first_plan} AS plan FROM ({columns.of(version, first)})
              UNION ALL BY NAME SELECT * FROM _later) r
        LEFT JOIN (SELECT uri, frame, max(plan) AS plan FROM _later GROUP BY ALL) i
               ON r.uri = i.uri AND r.frame = i.frame
        LEFT JOIN (SELECT uri, max(plan) AS plan, arg_max(etag, plan) AS etag FROM _later GROUP BY uri) u
               ON r.uri = u.uri
        WHERE (i.plan IS NULL OR r.plan >= i.plan) AND (u.plan IS NULL OR r.plan >= u.plan OR r.etag = u.etag)
    """


def _create_plans_table(connection: duckdb.DuckDBPyConnection, shards: list[str], plans: list[int]) -> None:
    """Shard id to plan number."""
    connection.execute(
        "CREATE TABLE _plans AS SELECT unnest(?::VARCHAR[]) AS shard_id, unnest(?::INTEGER[]) AS plan", [shards, plans]
    )


def describe_views(views: Views) -> dict[str, list[str]]:
    """View name to column names, for messages and docs."""
    rows = views.connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position"
    ).fetchall()
    further = (name for each in _more_views() for name in each.names)
    described: dict[str, list[str]] = {name: [] for name in (*views.names, *further)}
    for view, column in rows:
        if view in described:
            described[view].append(column)
    return {view: columns for view, columns in described.items() if columns}
