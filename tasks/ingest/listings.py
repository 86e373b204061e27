"""Ready listings: Parquet or CSV with a ``uri`` column, and optionally ``etag``, ``size`` and more.

Known columns: ``uri`` (required; without a scheme or a leading ``/`` it is relative to the listing's
folder), ``etag``, ``size_bytes`` or ``size``, ``media``, and for members of tars ``container``, ``offset``,
``length``. An inventory written by this package is a valid listing. Every listed item is kept, whatever its
name ends with; a listed tar stands for its members. URIs are taken as they are, never URL-decoded.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.store import Store, open_store, split_uri
from tasks.ingest.tar_sources import TarTask
from tasks.media.endings import kinds_of, reason_to_skip
from tasks.output.entries import BATCH_ROWS, INVENTORY_SCHEMA, Skipped
from tasks.records import UNKNOWN_ETAG

_TYPES: dict[str, pa.DataType] = {
    "uri": pa.string(),
    "etag": pa.string(),
    "size_bytes": pa.int64(),
    "size": pa.int64(),
    "media": pa.string(),
    "container": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "problem": pa.string(),
}
_SCHEME = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
LISTING_ENDINGS = (".parquet", ".csv", ".csv.gz")


def listing_pieces(store: Store, key: str, skipped: Skipped) -> Iterator[pa.RecordBatch | TarTask]:
    """The items of one listing, batch by batch.

    Raises:
        DatasetError: no ``uri`` column, or the file is damaged.
    """
    uri = store.uri_of(key)
    base = uri.rpartition("/")[0]
    read = _parquet if key.lower().endswith(".parquet") else _csv
    try:
        for batch in read(store, key, uri):
            yield from to_pieces(_completed(batch, base), skipped, keep_others=True)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"the listing {uri} cannot be read: it is no UTF-8 text ({error.reason} at byte {error.start})"
            f"{', but UTF-16' if _starts_as_utf16(store, key) else ''}",
            hint="Save it as UTF-8.",
        ) from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"the listing {uri} cannot be read: {first_line}", hint="Check the file.") from error


def _starts_as_utf16(store: Store, key: str) -> bool:
    return store.read_range(key, 0, 2) in (b"\xff\xfe", b"\xfe\xff")


def to_pieces(items: pa.RecordBatch, skipped: Skipped, *, keep_others: bool) -> Iterator[pa.RecordBatch | TarTask]:
    """Give every item its media and separate the tars.

    Args:
        items: columns of the inventory; ``media`` may be null: the name decides.
        skipped: takes the count of what is left out.
        keep_others: items of unknown kind are images (somebody listed them on purpose) instead of being left out.
    """
    listed = pc.greater(pc.utf8_length(pc.fill_null(items["uri"], "")), 0)
    skipped.add("line without a uri", [], items.num_rows - pc.sum(listed).as_py() if items.num_rows else 0)
    items = _with_foreign_schemes(items.filter(listed))
    kinds = kinds_of(items["uri"])
    known = pc.is_in(items["media"], pa.array(["image", "video"]))
    is_tar = pc.and_(pc.and_(pc.equal(kinds, "tar"), pc.is_null(items["container"])), pc.invert(known))
    is_tar = pc.and_(is_tar, pc.is_null(items["problem"]))
    other = pc.and_(pc.equal(kinds, "other"), pc.invert(known))
    media = pc.if_else(known, items["media"], pc.if_else(pc.equal(kinds, "video"), "video", "image"))
    items = items.set_column(items.schema.get_field_index("media"), "media", media)
    keep = pc.invert(is_tar)
    if not keep_others:
        for name in items.filter(other)["uri"].to_pylist():
            skipped.add(reason_to_skip(name), [name], 1)
        keep = pc.and_(keep, pc.invert(other))
    kept = items.filter(keep)
    if kept.num_rows:
        yield kept.cast(INVENTORY_SCHEMA)
    for line in items.filter(is_tar).to_pylist():
        root, key = split_uri(line["uri"])
        stated = bool(line["size_bytes"]) and not line["etag"].startswith(UNKNOWN_ETAG)
        yield TarTask(open_store(root), key, line["etag"] if stated else None, line["size_bytes"])


def _with_foreign_schemes(items: pa.RecordBatch) -> pa.RecordBatch:
    """Lines that point where nothing is read from get a problem, and so end as failed rows."""
    problems = items["problem"]
    for name in ("container", "uri"):
        scheme = pc.struct_field(pc.extract_regex(pc.fill_null(items[name], ""), _SCHEME), "scheme")
        is_foreign = pc.and_(pc.is_valid(scheme), pc.not_equal(pc.fill_null(scheme, "s3"), "s3"))
        words = pc.binary_join_element_wise("nothing is read from", pc.fill_null(scheme, ""), " ")
        words = pc.binary_join_element_wise(words, "addresses: only from folders and s3://", ":// ")
        problems = pc.if_else(pc.and_(is_foreign, pc.is_null(problems)), words, problems)
    return items.set_column(items.schema.get_field_index("problem"), "problem", problems)


def _parquet(store: Store, key: str, uri: str) -> Iterator[pa.RecordBatch]:
    with store.open(key) as stream:
        file = pq.ParquetFile(stream)
        names = [name for name in file.schema_arrow.names if name in _TYPES]
        _check_columns(names, file.schema_arrow.names, uri)
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=names)


def _csv(store: Store, key: str, uri: str) -> Iterator[pa.RecordBatch]:
    with store.open(key) as raw:
        stream = cast(BinaryIO, gzip.open(raw)) if key.lower().endswith(".gz") else raw
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=1 << 20),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=_TYPES, strings_can_be_null=False),
        )
        names = [name for name in reader.schema.names if name in _TYPES]
        _check_columns(names, reader.schema.names, uri)
        for batch in reader:
            yield batch.select(names)


def _check_columns(known: list[str], found: list[str], uri: str) -> None:
    if "uri" not in known:
        shown = ", ".join(repr(name) for name in found[:12])
        raise DatasetError(f"the listing {uri} has no column 'uri'", hint=f"It has {shown}; rename the one to use.")


def _completed(batch: pa.RecordBatch, base: str) -> pa.RecordBatch:
    """The inventory's columns from a listing's: types, defaults, absolute URIs."""
    columns: dict[str, pa.Array] = {}
    for field in INVENTORY_SCHEMA:
        source = "size" if field.name == "size_bytes" and "size_bytes" not in batch.schema.names else field.name
        if source in batch.schema.names:
            columns[field.name] = pc.cast(batch[source], field.type)
        else:
            columns[field.name] = pa.nulls(batch.num_rows, field.type)
    for name in ("container", "problem"):
        columns[name] = pc.if_else(pc.equal(columns[name], ""), pa.scalar(None, pa.string()), columns[name])
    columns["uri"] = _absolute(columns["uri"], base)
    columns["container"] = _absolute(columns["container"], base)
    columns["size_bytes"] = pc.fill_null(columns["size_bytes"], 0)
    columns["etag"] = etags_or_unknown(columns["etag"], columns["size_bytes"])
    return pa.RecordBatch.from_arrays(
        list(columns.values()), schema=pa.schema([field.with_nullable(True) for field in INVENTORY_SCHEMA])
    )


def etags_or_unknown(etags: pa.Array, sizes: pa.Array) -> pa.Array:
    """Etags without the quotes some tools keep around them; ``unknown:<size>`` where there is none."""
    bare = pc.fill_null(pc.utf8_trim(etags, '"'), "")
    unknown = pc.binary_join_element_wise(UNKNOWN_ETAG, pc.cast(sizes, pa.string()), "")
    return pc.if_else(pc.equal(bare, ""), unknown, bare)


def _absolute(uris: pa.Array, base: str) -> pa.Array:
    """``file://`` is dropped; a name without scheme and leading slash lies beside the listing."""
    bare = pc.replace_substring_regex(uris, r"^file://(?:localhost)?/", "/")
    absolute = pc.match_substring_regex(bare, r"^(?:/|[A-Za-z][A-Za-z0-9+.-]*://)")
    return pc.if_else(pc.or_(absolute, pc.equal(bare, "")), bare, pc.binary_join_element_wise(base, bare, "/"))
