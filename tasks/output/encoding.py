"""One row per item, also for items that failed, and a shard's rows as the bytes of its Parquet object.

The bytes are made whole in memory and checked before anybody sees them.

zstd-3; sorted by (uri, frame), so that every engine prunes row groups by uri; dictionaries on categories only;
BYTE_STREAM_SPLIT on floats; statistics on the columns that queries filter by and on no other. Pages carry checksums.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import ContractBroken
from modelkit.carriers import Carrier
from tasks.output.layout import version_from_json, version_to_json
from tasks.output.schema import schema_named
from tasks.product import Product, called, find_product
from tasks.records import Entry, ItemFailure, Status, Version

if TYPE_CHECKING:  # queries need no decoders
    from tasks.media.images import Frame

AT_LIMIT = "at_limit"
"""Of a carrier: how many things the model may find in an item, where it found as many. Of counts: in how many items."""
ROW_GROUP_ROWS = 20_000
ZSTD_LEVEL = 3

# Of the columns that all products have; a product names its own.
_CATEGORIES = ("media", "status", "stage", "error_type", "model", "run_id", "shard_id", "notes.list.element")
_ENCODINGS = {
    "uri": "DELTA_BYTE_ARRAY",  # sorted names share their beginnings
    "frame": "DELTA_BINARY_PACKED",
    "pts_s": "BYTE_STREAM_SPLIT",
}
# uri is what rows are sorted and pruned by: two values a row group, 0.1 % of a part, let every engine skip the others.
# The other long strings (etag, error) are never looked up by range, and pyarrow would store them whole.
_STATISTICS = [
    "uri", "media", "frame", "pts_s", "width", "height", "status", "stage", "error_type",
    "model", "run_id", "shard_id", "processed_at",
]  # fmt: skip
_PREFIX = "visionmill."
_ROW_OVERHEAD_BYTES = 500  # Python objects and short strings of a row, about


class BadPartError(ValueError):
    """Raised when encoded bytes don't read back as what was to be written; nothing of them may be published."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item on its way to Parquet. ``found`` is set exactly when ``failure`` is not."""

    uri: str
    etag: str
    media: str
    frame: int
    pts_s: float | None
    size_hw: tuple[int, int] | None
    status: Status = "ok"
    notes: tuple[str, ...] = ()
    failure: ItemFailure | None = None
    found: Carrier | None = None
    processed_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    @property
    def nbytes(self) -> int:
        """Memory it holds, about: for limits on bytes in flight."""
        return _ROW_OVERHEAD_BYTES + (0 if self.found is None else self.found.nbytes)


@dataclass(frozen=True, slots=True)
class PartFacts:
    """What the footer of a part says about it.

    Args:
        version: what its rows are comparable with.
        plan: number of the plan that asked for it.
        shard_id, attempt_id, run_id: who made it; the attempt id occurs in the bytes nowhere else.
        items: rows by status, and what was found in all of them under the name of the product's unit.
        stage_seconds: busy seconds of the attempt by stage.
        class_names: id -> name of every class the model knows.
    """

    version: Version
    plan: int
    shard_id: str
    attempt_id: str
    run_id: str
    items: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    class_names: dict[int, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """The key-value pairs of the footer, all under ``visionmill.``."""
        values: dict[str, Any] = {
            "schema": self.version.schema,
            "version": json.dumps(version_to_json(self.version)),
            "plan": str(self.plan),
            "shard": self.shard_id,
            "attempt": self.attempt_id,
            "run": self.run_id,
            "model_digest": self.version.model_digest,
            "items": json.dumps(self.items),
            "stage_seconds": json.dumps({name: round(seconds, 6) for name, seconds in self.stage_seconds.items()}),
            "classes": json.dumps({str(number): name for number, name in self.class_names.items()}),
        }
        return {_PREFIX + name: value for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> PartFacts:
        """The facts in a footer. Raises ValueError when it is none of ours."""
        try:
            value = {name: metadata[(_PREFIX + name).encode()].decode() for name in
                     ("version", "plan", "shard", "attempt", "run", "items", "stage_seconds", "classes")}  # fmt: skip
        except KeyError as error:
            raise ValueError(f"the footer has no {error.args[0].decode()}: not a part of visionmill") from error
        return cls(
            version=version_from_json(json.loads(value["version"])),
            plan=int(value["plan"]),
            shard_id=value["shard"],
            attempt_id=value["attempt"],
            run_id=value["run"],
            items=json.loads(value["items"]),
            stage_seconds=json.loads(value["stage_seconds"]),
            class_names={int(number): name for number, name in json.loads(value["classes"]).items()},
        )


def ok_row(entry: Entry, frame: Frame, found: Carrier) -> Row:
    """The row of an item in which a model found ``found`` (perhaps nothing).

    Raises:
        ValueError: when the model's canvas is not the frame's: its pixels would mean nothing.
    """
    if tuple(frame.size_hw or ()) != tuple(found.size_hw):
        raise ValueError(f"results are for an image of {found.size_hw} (rows, columns), the item has {frame.size_hw}")
    return _row(entry, frame, found=found)


def failed_row(entry: Entry, frame: Frame, failure: ItemFailure, status: Status = "failed") -> Row:
    """The row of an item without a result; ``status`` may be "quarantined"."""
    return _row(entry, frame, status=status, failure=failure)


def _row(entry: Entry, frame: Frame, **outcome: Any) -> Row:
    notes = (*frame.notes, *getattr(outcome.get("found"), "notes", ()))
    place = {"frame": frame.frame, "pts_s": frame.pts_s, "size_hw": frame.size_hw, "notes": notes}
    return Row(uri=entry.uri, etag=entry.etag, media=entry.media, **place, **outcome)  # type: ignore[arg-type]


def count_items(rows: Sequence[Row], product: Product) -> dict[str, int]:
    """Rows by status, all that was found in them, and in how many the model found as many as it may, if in any."""
    statuses = Counter(row.status for row in rows)
    limited = sum(getattr(row.found, AT_LIMIT, None) is not None for row in rows)
    return {
        "rows": len(rows),
        "ok": statuses["ok"],
        "failed": statuses["failed"],
        "quarantined": statuses["quarantined"],
        product.unit: sum(len(row.found) for row in rows if row.found is not None),
        **({AT_LIMIT: limited} if limited else {}),
    }


def encode_part(
    rows: Sequence[Row],
    *,
    version: Version,
    plan: int,
    shard_id: str,
    attempt_id: str,
    run_id: str,
    stage_seconds: Mapping[str, float] | None = None,
    class_names: Mapping[int, str] | None = None,
) -> bytes:
    """The Parquet object of a shard.

    Args:
        rows: one per item, in any order; none when a stride skips every frame of the shard.
        version, plan, shard_id, attempt_id, run_id: see :class:`PartFacts`.
        stage_seconds: busy seconds so far.
        class_names: id -> name; ids without one are called ``class <id>``.

    Raises:
        BadPartError: when the bytes, read back, are not what went in.
    """
    product = find_product(version.product)
    facts = PartFacts(
        version=version,
        plan=plan,
        shard_id=shard_id,
        attempt_id=attempt_id,
        run_id=run_id,
        items=count_items(rows, product),
        stage_seconds=dict(stage_seconds or {}),
        class_names=dict(class_names or {}),
    )
    table = rows_to_table(rows, facts)
    data = write_parquet(table, facts.to_metadata(), product)
    check_part(data, facts, table.schema)
    return data


def encode_sound(rows: Sequence[Row], *, version: Version, **said: Any) -> tuple[Sequence[Row], bytes]:
    """As :func:`encode_part`, but a result that makes no columns is a failed row now: it costs no other row.

    Returns:
        The rows as they are in the part, and the part.
    """
    try:
        return rows, encode_part(rows, version=version, **said)
    except Exception:  # noqa: BLE001 - the second try raises again what is no single result's fault
        rows = [_sound(row, version, said.get("class_names") or {}) for row in rows]
        return rows, encode_part(rows, version=version, **said)


def _sound(row: Row, version: Version, class_names: Mapping[int, str]) -> Row:
    if row.found is None:
        return row
    product = find_product(version.product)
    try:
        made = product.columns([row.found], class_names)
        for each in schema_named(version.product, version.schema):
            if each.name in made:
                _array(each, made[each.name], product)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a result becomes the row of its item
        return replace(row, found=None, status="failed", failure=ItemFailure.of("encode", error))
    return row


def rows_to_table(rows: Sequence[Row], facts: PartFacts) -> pa.Table:
    """The rows sorted by (uri, frame), in exactly the schema of the version's product."""
    ordered = sorted(rows, key=lambda row: (row.uri, row.frame))
    version = facts.version
    schema = schema_named(version.product, version.schema)
    product = find_product(version.product)
    own = product.columns([row.found for row in ordered], facts.class_names)
    columns = {**_common(ordered, facts), **own}
    _check_names(own, product, version)
    return pa.Table.from_arrays([_array(each, columns[each.name], product) for each in schema], schema=schema)


def _check_names(own: Mapping[str, Any], product: Product, version: Version) -> None:
    """Refuse columns that are missing, or in no schema of the product; those of its other schemas may be there."""
    wanted = {each.name for each in product.schemas()[version.schema]}
    known = {each.name for schema in product.schemas().values() for each in schema}
    for wrong, words in ((wanted - own.keys(), "are missing"), (own.keys() - known, "are in none of its schemas")):
        if wrong:
            raise ContractBroken(f"columns() of the product {product.name!r}: {sorted(wrong)} {words}")


def _array(column: pa.Field, values: Any, product: Product) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    with called(product, f"the column {column.name!r}"):
        return pa.array(values, column.type)


def _common(rows: Sequence[Row], facts: PartFacts) -> dict[str, Any]:
    sizes = [row.size_hw or (None, None) for row in rows]
    failures = [row.failure for row in rows]
    n = len(rows)
    return {
        "uri": [row.uri for row in rows],
        "etag": [row.etag for row in rows],
        "media": [row.media for row in rows],
        "frame": [row.frame for row in rows],
        "pts_s": [row.pts_s for row in rows],
        "width": [size[1] for size in sizes],
        "height": [size[0] for size in sizes],
        "status": [row.status for row in rows],
        "stage": [failure and failure.stage for failure in failures],
        "error_type": [failure and failure.error_type for failure in failures],
        "error": [failure and failure.error for failure in failures],
        "notes": [list(row.notes) for row in rows],
        "model": [facts.version.model] * n,
        "run_id": [facts.run_id] * n,
        "shard_id": [facts.shard_id] * n,
        "processed_at": [row.processed_at for row in rows],
    }


def write_parquet(table: pa.Table, metadata: Mapping[str, str], product: Product) -> bytes:
    """A table of a product with our encodings and a footer; columns that it lacks need no setting."""
    names = set(table.schema.names)

    def ours(path: str) -> bool:
        return path.split(".", 1)[0] in names

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[path for path in (*_CATEGORIES, *product.categories) if ours(path)],
        column_encoding={path: kind for path, kind in {**_ENCODINGS, **product.encodings}.items() if ours(path)},
        write_statistics=[path for path in _STATISTICS if ours(path)],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(dict(metadata))
    return sink.getvalue().to_pybytes()


def read_facts(data: bytes) -> tuple[PartFacts, pq.FileMetaData]:
    """The footer of a part in memory. Raises BadPartError when it is none."""
    try:
        footer = pq.read_metadata(pa.BufferReader(data))
        return PartFacts.from_metadata(footer.metadata or {}), footer
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadPartError(f"the bytes are no readable part: {error}") from error


def check_part(data: bytes, facts: PartFacts, schema: pa.Schema) -> None:
    """Read the footer back: the rows, columns, types and facts must be those that went in.

    Raises:
        BadPartError: names what differs.
    """
    found, footer = read_facts(data)
    if footer.num_rows != facts.items["rows"]:
        raise BadPartError(f"{facts.items['rows']} rows went in, {footer.num_rows} can be read")
    if not footer.schema.to_arrow_schema().equals(schema, check_metadata=False):
        raise BadPartError(f"the columns read back are not those of {facts.version.schema}")
    if (found.shard_id, found.attempt_id, found.items) != (facts.shard_id, facts.attempt_id, facts.items):
        raise BadPartError(f"the footer speaks of shard {found.shard_id}, attempt {found.attempt_id}, {found.items}")
