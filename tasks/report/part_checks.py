"""What must be true of one committed part: its footer, its rows against the plan, and (deep) every mask in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.store import ObjectInfo, Store
from tasks.output.encoding import PartFacts
from tasks.output.schema import QUALITIES, schema_named
from tasks.output.store_files import open_parquet
from tasks.records import Entry, Shard, Version

_NARROW = ["uri", "etag", "media", "frame", "status", "stage", "error_type", "error", "shard_id", "run_id", "model"]
_LISTS = ("labels", "names", "scores", "boxes_xyxy", "areas", "rles", "is_thing", "track_ids")
_QUALITIES = tuple(field.name for field in QUALITIES)
_OPTIONAL_LISTS = ("rles", "track_ids", *_QUALITIES)  # null for models that have none

RowFacts = dict[str, Any]


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
            rows = opened.read(columns=_NARROW).to_pylist()
            findings.counts.update(row["status"] for row in rows)
            _check_counts(opened.metadata, findings)
            findings.problems.extend(_check_rows(rows, version, shard))
            if deep:
                findings.problems.extend(_check_found(opened))
    except (pa.ArrowException, OSError, StoreError, KeyError, ValueError) as error:
        findings.problems.append(f"cannot be read: {error}")
    findings.problems = [f"{info.key}: {problem}" for problem in findings.problems]
    return findings


def _check_footer(opened: pq.ParquetFile, version: Version, shard: Shard, findings: PartFindings) -> None:
    stated = (opened.metadata.metadata or {}).get(b"visionmill.schema", b"").decode()
    if stated != version.schema:
        findings.problems.append(f"states schema {stated!r}; its version has {version.schema!r}")
    if not opened.schema_arrow.remove_metadata().equals(schema_named(version.schema)):
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


def _check_rows(rows: list[RowFacts], version: Version, shard: Shard) -> Iterator[str]:
    """Order, duplicates, what every row says about itself, and every entry of the plan against its rows."""
    keys = [(row["uri"], row["frame"]) for row in rows]
    if keys != sorted(keys):
        yield "rows are not sorted by (uri, frame)"
    for (uri, frame), count in Counter(keys).items():
        if count > 1:
            yield f"{count} rows for {uri!r}, frame {frame}"
    for row in rows:
        yield from _check_row(row, version, shard)
    by_uri = {uri: list(group) for uri, group in groupby(sorted(rows, key=_key), key=lambda row: row["uri"])}
    planned = {entry.uri for entry in shard.entries}
    for uri in by_uri.keys() - planned:
        yield f"a row for {uri!r}, which the plan does not have in this shard"
    for uri, group in groupby(shard.entries, key=lambda entry: entry.uri):
        yield from _check_entries(list(group), by_uri.get(uri, []), _stride(version))


def _key(row: RowFacts) -> tuple[str, int]:
    return row["uri"], row["frame"]


def _stride(version: Version) -> int:
    stride = version.parameters.get("frame_stride", 1)
    return stride if isinstance(stride, int) else 1


def _check_row(row: RowFacts, version: Version, shard: Shard) -> Iterator[str]:
    where = f"row of {row['uri']!r}, frame {row['frame']}"
    if row["shard_id"] != shard.shard_id or row["model"] != version.model:
        yield f"{where}: says shard {row['shard_id']}, model {row['model']}"
    if row["status"] not in ("ok", "failed", "quarantined"):
        yield f"{where}: status {row['status']!r}"
    reasons = [row[name] for name in ("stage", "error_type", "error")]
    if (row["status"] == "ok") != all(reason is None for reason in reasons):
        yield f"{where}: {row['status']} with stage, kind and error {reasons}"


def _check_entries(entries: list[Entry], rows: list[RowFacts], stride: int) -> Iterator[str]:
    """All entries of one uri in a shard (pieces of a video, or one image) against its rows, both in order."""
    uri = entries[0].uri
    for row in rows:
        if row["etag"] != entries[0].etag:
            yield f"{uri!r} was planned with etag {entries[0].etag}, its row has {row['etag']}"
    taken = 0
    for entry in entries:
        end = entry.end_frame if entry.end_frame is not None else np.inf
        own = [row for row in rows if entry.first_frame <= row["frame"] < end]
        taken += len(own)
        if entry.media == "image":
            if len(own) != 1 or own[0]["frame"] != 0:
                yield f"{uri!r} must have one row, has {len(own)}"
        else:
            yield from _check_frames(entry, own, stride)
    if taken < len(rows):
        yield f"{len(rows) - taken} rows of {uri!r} lie outside of the planned frames"


def _check_frames(entry: Entry, rows: list[RowFacts], stride: int) -> Iterator[str]:
    """Frames come without a gap from the first wanted one to the end, or to the row that says why not."""
    where = f"{entry.uri!r} from frame {entry.first_frame}"
    first_wanted = -(-entry.first_frame // stride) * stride
    if entry.end_frame is not None and first_wanted >= entry.end_frame:
        return  # the stride leaves nothing of this piece
    if not rows:
        yield f"{where}: no row"
        return
    expected = first_wanted
    for row in rows:
        late = row["frame"] > expected
        if late or (row["status"] == "ok" and row["frame"] != expected):
            yield f"{where}: frame {expected} is missing before frame {row['frame']}"
        expected = row["frame"] // stride * stride + stride
    if entry.end_frame is not None and expected < entry.end_frame and rows[-1]["status"] == "ok":
        yield f"{where}: ends before frame {expected} of {entry.end_frame} without a reason"


def _check_found(opened: pq.ParquetFile) -> Iterator[str]:
    """Parallel lists of equal length, scores in range, and masks that cover exactly their image."""
    lists = [*_LISTS, *(name for name in _QUALITIES if name in opened.schema_arrow.names)]
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, columns=["uri", "frame", "status", "width", "height", *lists])
        found = table.filter(pc.equal(table["status"], "ok"))
        lengths = pc.list_value_length(found["labels"])
        for name in lists:
            own = pc.list_value_length(found[name])
            if name in _OPTIONAL_LISTS:
                own = pc.coalesce(own, lengths)
            for row in np.flatnonzero(~_equal(own, lengths)).tolist():
                yield f"{_where(found, row)}: {name} is not as long as labels"
        for name in ("scores", *lists[len(_LISTS) :]):
            values = pc.list_flatten(found[name]).to_numpy()
            if not ((values >= 0) & (values <= 1)).all():
                yield f"row group {group}: {name} outside of [0, 1]"
        yield from _check_masks(found)


def _equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.equal(a, b), False).to_numpy().astype(bool)


def _check_masks(found: pa.Table) -> Iterator[str]:
    from modelkit.rle.codec import RleError, counts_ragged

    names = ("width", "height", "rles", "areas", "is_thing")
    columns = zip(*(found[name].to_pylist() for name in names), strict=True)
    for row, (width, height, rles, areas, is_thing) in enumerate(columns):
        if not rles:
            continue
        try:
            counts, lengths = counts_ragged(rles)
        except RleError as error:
            yield f"{_where(found, row)}: {error}"
            continue
        masks = np.split(counts, np.cumsum(lengths)[:-1])
        for instance, runs in enumerate(masks):
            if runs.sum() != width * height or (runs < 0).any():
                yield f"{_where(found, row)}, instance {instance}: mask of {runs.sum()} pixels on {width}x{height}"
            elif runs[1::2].sum() != areas[instance]:
                yield f"{_where(found, row)}, instance {instance}: area {areas[instance]}, mask {runs[1::2].sum()}"
        if not all(is_thing) and (shared := _shared_stuff(masks, is_thing, width * height)):
            yield f"{_where(found, row)}: {shared} pixels of stuff belong to another segment, too"


def _shared_stuff(masks: Sequence[np.ndarray], is_thing: Sequence[bool], num_pixels: int) -> int:
    """How many pixels of stuff are covered twice; the masks are run lengths, background first."""
    changes = np.zeros((2, num_pixels + 1), np.int32)  # of the cover by stuff, and by everything
    for runs, thing in zip(masks, is_thing, strict=True):
        bounds = np.cumsum(runs).clip(0, num_pixels)
        for change in changes[1:] if thing else changes:
            np.add.at(change, bounds[:-1:2], 1)
            np.add.at(change, bounds[1::2], -1)
    by_stuff, by_all = changes.cumsum(axis=1)
    return int(((by_stuff > 0) & (by_all > 1)).sum())


def _where(table: pa.Table, row: int) -> str:
    return f"row of {table['uri'][row].as_py()!r}, frame {table['frame'][row].as_py()}"
