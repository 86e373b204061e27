"""What must be true of one committed part: its footer, its rows against the plan, and (deep) all that was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError, VisionmillError
from infra.store import ObjectInfo, Store
from tasks.ingest.planned_rows import RowFacts, entry_holes, rows_by_uri, rows_of, stride_of
from tasks.output.encoding import PartFacts
from tasks.output.files import check_files
from tasks.output.schema import schema_named
from tasks.output.store_files import open_parquet
from tasks.product import called, find_product
from tasks.records import Entry, Shard, Version

_NARROW = ["uri", "etag", "media", "frame", "status", "stage", "error_type", "error", "shard_id", "run_id", "model"]

_Row = dict[str, Any]


@dataclass(slots=True)
class PartFindings:
    """Rows by status that were counted, and one line per thing that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def check_part_object(store: Store, version: Version, shard: Shard, info: ObjectInfo, *, deep: bool) -> PartFindings:
    """Everything about one part; store errors become problems, too."""
    findings = PartFindings()
    try:
        with open_parquet(store, info.key, verify_checksums=deep) as opened:
            _check_footer(opened, version, shard, findings)
            sink = find_product(version.product).sink
            rows = opened.read(columns=[*_NARROW, *(sink.columns if sink is not None else ())]).to_pylist()
            findings.counts.update(row["status"] for row in rows)
            _check_counts(opened.metadata, findings)
            findings.problems.extend(_check_rows(rows, version, shard))
            if sink is not None:
                findings.problems.extend(check_files(store, version, shard, rows, sink, deep=deep))
            if deep:
                findings.problems.extend(_check_found(opened, version.product))
    except (pa.ArrowException, OSError, StoreError, KeyError, ValueError) as error:
        findings.problems.append(f"cannot be read: {error}")
    except VisionmillError as error:
        findings.problems.append(error.message)
    findings.problems = [f"{info.key}: {problem}" for problem in findings.problems]
    return findings


def _check_footer(opened: pq.ParquetFile, version: Version, shard: Shard, findings: PartFindings) -> None:
    stated = (opened.metadata.metadata or {}).get(b"visionmill.schema", b"").decode()
    if stated != version.schema:
        findings.problems.append(f"states schema {stated!r}; its version has {version.schema!r}")
    if not opened.schema_arrow.remove_metadata().equals(schema_named(version.product, version.schema)):
        findings.problems.append(f"columns or types differ from {version.schema}")
    facts = PartFacts.from_metadata(opened.metadata.metadata or {})
    for what, stated_value, wanted in (
        ("version", facts.version.fingerprint, version.fingerprint),
        ("plan", facts.plan, shard.plan),
        ("shard", facts.shard_id, shard.shard_id),
    ):
        if stated_value != wanted:
            findings.problems.append(f"its footer says {what} {stated_value}, its name and plan say {wanted}")


def _check_counts(footer: pq.FileMetaData, findings: PartFindings) -> None:
    stated = PartFacts.from_metadata(footer.metadata or {}).items
    counted = {status: findings.counts[status] for status in ("ok", "failed", "quarantined")}
    counted["rows"] = findings.counts.total()
    differing = {name: (stated.get(name), count) for name, count in counted.items() if stated.get(name) != count}
    for name, (says, count) in differing.items():
        findings.problems.append(f"its footer counts {says} {name}, it holds {count}")


def _check_rows(rows: list[_Row], version: Version, shard: Shard) -> Iterator[str]:
    """Order, duplicates, what every row says about itself, and every entry of the plan against its rows."""
    keys = [(row["uri"], row["frame"]) for row in rows]
    if keys != sorted(keys):
        yield "rows are not sorted by (uri, frame)"
    for (uri, frame), count in Counter(keys).items():
        if count > 1:
            yield f"{count} rows for {uri!r}, frame {frame}"
    for row in rows:
        yield from _check_row(row, version, shard)
    by_uri = rows_by_uri(_facts_of(row) for row in rows)
    planned = {entry.uri for entry in shard.entries}
    for uri in by_uri.keys() - planned:
        yield f"a row for {uri!r}, which the plan does not have in this shard"
    for uri, group in groupby(shard.entries, key=lambda entry: entry.uri):
        yield from _check_entries(list(group), by_uri.get(uri, ()), stride_of(version))


def _facts_of(row: _Row) -> RowFacts:
    return RowFacts(row["uri"], row["etag"], row["frame"], row["status"] == "ok", row["error"] or "")


def _check_row(row: _Row, version: Version, shard: Shard) -> Iterator[str]:
    where = f"row of {row['uri']!r}, frame {row['frame']}"
    if row["shard_id"] != shard.shard_id or row["model"] != version.model:
        yield f"{where}: says shard {row['shard_id']}, model {row['model']}"
    if row["status"] not in ("ok", "failed", "quarantined"):
        yield f"{where}: status {row['status']!r}"
    reasons = [row[name] for name in ("stage", "error_type", "error")]
    if (row["status"] == "ok") != all(reason is None for reason in reasons):
        yield f"{where}: {row['status']} with stage, kind and error {reasons}"


def _check_entries(entries: list[Entry], rows: Sequence[RowFacts], stride: int) -> Iterator[str]:
    """All entries of one uri in a shard (pieces of a video, or one image) against its rows, both in order."""
    uri, taken = entries[0].uri, 0
    for row in rows:
        if row.etag != entries[0].etag:
            yield f"{uri!r} was planned with etag {entries[0].etag}, its row has {row.etag}"
    for entry in entries:
        own = rows_of(entry, rows)
        taken += len(own)
        if entry.media == "image" and own and (len(own) > 1 or own[0].frame != 0):
            yield f"{uri!r} must have one row, has {len(own)}"
        yield from (hole.words for hole in entry_holes(entry, own, stride))
    if taken < len(rows):
        yield f"{len(rows) - taken} rows of {uri!r} lie outside of the planned frames"


def _check_found(opened: pq.ParquetFile, product: str) -> Iterator[str]:
    """What the product itself says of the rows that have a result."""
    owner = find_product(product)
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group)
        if owner.check is not None:
            with called(owner, "check"):
                yield from owner.check(table.filter(pc.equal(table["status"], "ok")))
