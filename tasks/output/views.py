"""Committed Parquet as SQL views: ``items``, ``instances``, ``failures``, ``all_items``; and views of higher floors.

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
from tasks.output.listing import ListedVersion, Listing, Part, list_committed, plan_of_shards
from tasks.output.schema import COMMON, QUALITIES, schema_of
from tasks.output.store_files import PROTOCOL, StoreFileSystem, path_of
from tasks.products.segments.masks_sql import register_mask_functions
from tasks.records import Product

VIEWS = ("items", "instances", "failures", "all_items")

MORE_VIEWS = ("tasks.loop.lineage",)
"""Modules that bring further views as ``VIEWS``; loaded when views are opened, so they must be light: no torch."""

MEMORY_SHARE = "40%"  # of the machine's memory, for one connection

_GLOB_CHARACTERS = frozenset("*?[]{}")

_INSTANCES = """
SELECT uri, etag, media, frame, pts_s, CAST(i - 1 AS INTEGER) AS instance,
       labels[i] AS label, names[i] AS name, scores[i] AS score,
       boxes_xyxy[i][1] AS x0, boxes_xyxy[i][2] AS y0, boxes_xyxy[i][3] AS x1, boxes_xyxy[i][4] AS y1,
       areas[i] AS area, rles[i] AS rle, is_thing[i] AS is_thing, track_ids[i] AS track_id,
       q_stability[i] AS q_stability, q_tta[i] AS q_tta,
       width, height, model, version
FROM (SELECT *, unnest(range(1, len(labels) + 1)) AS i FROM items WHERE status = 'ok')
"""  # unnest over the lists themselves would read all of them, also the masks: indexing prunes


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
    """An open connection, what it shows, and the filesystem it reads through (None: DuckDB's own, for folders)."""

    connection: duckdb.DuckDBPyConnection
    listing: Listing
    filesystem: StoreFileSystem | None


def open_views(output_uri: str, *, product: Product = "segments", native: bool = True) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views over what is committed in an output at this moment.

    Args:
        output_uri: folder or ``s3://bucket/prefix`` of a job's output. Nothing committed yet: views without rows.
        product: which rows.
        native: let DuckDB read folders itself (the fastest way); False goes through the store there, too.

    The connection cannot reach anything but the listed files: no other file, no network, no extension.
    """
    return views_of(open_store(output_uri), product=product, native=native).connection


def views_of(store: Store, *, product: Product = "segments", native: bool = True) -> Views:
    """As :func:`open_views`, for an open store."""
    listing = list_committed(store, product)
    more = [(each, each.objects(store)) for each in _more_views()]
    connection = duckdb.connect(":memory:")
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    connection.execute("SET python_enable_replacements = false; SET TimeZone = 'UTC'")
    # large sorts and joins go to disk instead of taking a machine's memory away from everybody else
    scratch = (
        Path(tempfile.gettempdir()) / f"visionmill-duckdb-{uuid.uuid4().hex}"
    )  # made when needed, removed at close
    connection.execute(f"SET temp_directory = {_quoted(str(scratch))}; SET memory_limit = '{MEMORY_SHARE}'")
    register_mask_functions(connection)
    objects = [part.info for version in listing.versions for part in version.parts]
    objects += [info for _, found in more for infos in found.values() for info in infos]
    filesystem = _choose_reader(connection, store, objects, native=native)
    _create_views(connection, listing, plain_paths=filesystem is None)

    def path(info: ObjectInfo) -> str:
        return store.uri_of(info.key) if filesystem is None else path_of(info.key)

    for each, found in more:
        each.create(connection, {name: [path(info) for info in infos] for name, infos in found.items()})
    connection.execute("SET enable_external_access = false")
    return Views(connection, listing, filesystem)


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


def _create_views(connection: duckdb.DuckDBPyConnection, listing: Listing, *, plain_paths: bool) -> None:
    _, schema = schema_of(listing.product, measured=True)  # a version without the measured columns shows nulls
    filled = [version for version in listing.versions if version.parts]
    everything = [_rows(connection, listing, version, version.parts, plain_paths) for version in filled]
    if not filled:
        connection.register("_nothing", schema.empty_table())
        everything = ["SELECT *, CAST(NULL AS VARCHAR) AS version FROM _nothing"]
    connection.execute("CREATE VIEW all_items AS " + " UNION ALL BY NAME ".join(everything))
    newest = listing.newest
    items = "SELECT * FROM all_items" if newest is None else _latest(connection, listing, newest, plain_paths)
    connection.execute(f"CREATE VIEW items AS {items}")
    common = ", ".join(field.name for field in COMMON)
    connection.execute(f"CREATE VIEW failures AS SELECT {common}, version FROM items WHERE status <> 'ok'")
    if listing.product == "segments":
        connection.execute(f"CREATE VIEW instances AS {_INSTANCES}")


def _rows(
    connection: duckdb.DuckDBPyConnection,
    listing: Listing,
    version: ListedVersion,
    parts: tuple[Part, ...],
    plain_paths: bool,
) -> str:
    """A SELECT over the files of some parts: the frozen columns, and the version they belong to."""
    keys = [part.info.key for part in parts]
    paths = [_quoted(listing.store.uri_of(key) if plain_paths else path_of(key)) for key in keys]
    # All parts of a version have one schema, so the first one tells.
    present = set(connection.sql(_reading(paths[:1])).columns)
    _, schema = schema_of(listing.product, measured=True)
    absent = {field.name for field in QUALITIES} - present
    columns = ", ".join(f"CAST(NULL AS FLOAT[]) AS {name}" if name in absent else name for name in schema.names)
    return f"SELECT {columns}, '{version.fingerprint}' AS version FROM ({_reading(paths)})"


def _reading(quoted_paths: list[str]) -> str:
    return f"SELECT * FROM read_parquet([{', '.join(quoted_paths)}], hive_partitioning = false)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _latest(connection: duckdb.DuckDBPyConnection, listing: Listing, version: ListedVersion, plain_paths: bool) -> str:
    """The SELECT of a version's latest rows; see the module's text for the rule."""
    _, schema = schema_of(listing.product, measured=True)
    plan_of = plan_of_shards(listing.store, version) if len(version.plans) > 1 else {}
    first_plan = min((plan_of.get(part.shard_id, 0) for part in version.parts), default=0)
    first = tuple(part for part in version.parts if plan_of.get(part.shard_id, 0) == first_plan)
    later = tuple(part for part in version.parts if plan_of.get(part.shard_id, 0) != first_plan)
    if not later:
        return _rows(connection, listing, version, first, plain_paths)
    shards = [part.shard_id for part in later]
    _create_plans_table(connection, shards, [plan_of[shard_id] for shard_id in shards])
    rows = _rows(connection, listing, version, later, plain_paths)
    connection.execute(f"CREATE VIEW _later AS SELECT * FROM ({rows}) JOIN _plans USING (shard_id)")
    columns = ", ".join(f"r.{name}" for name in [*schema.names, "version"])
    return f"""
        SELECT {columns}
        FROM (SELECT *, {first_plan} AS plan FROM ({_rows(connection, listing, version, first, plain_paths)})
              UNION ALL BY NAME SELECT * FROM _later) r
        LEFT JOIN (SELECT uri, frame, max(plan) AS plan FROM _later GROUP BY ALL) i
               ON r.uri = i.uri AND r.frame = i.frame
        LEFT JOIN (SELECT uri, max(plan) AS plan, arg_max(etag, plan) AS etag FROM _later GROUP BY uri) u
               ON r.uri = u.uri
        WHERE (i.plan IS NULL OR r.plan >= i.plan) AND (u.plan IS NULL OR r.plan >= u.plan OR r.etag = u.etag)
    """


def _create_plans_table(connection: duckdb.DuckDBPyConnection, shards: list[str], plans: list[int]) -> None:
    """Shard id to plan number, as a table of the connection (registered data does not outlive its Python name)."""
    table = pa.table({"shard_id": pa.array(shards, pa.string()), "plan": pa.array(plans, pa.int32())})
    connection.register("_plans_arrow", table)
    connection.execute("CREATE TABLE _plans AS SELECT * FROM _plans_arrow")
    connection.unregister("_plans_arrow")


def describe_views(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """View name to column names, for messages and docs."""
    rows = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position"
    ).fetchall()
    views: dict[str, list[str]] = {
        name: [] for name in (*VIEWS, *(name for each in _more_views() for name in each.names))
    }
    for view, column in rows:
        if view in views:
            views[view].append(column)
    return {view: columns for view, columns in views.items() if columns}
