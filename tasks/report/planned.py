"""From rows back to the plan's entries, which know tar members and keyframes: what it takes to open an item again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.ingest.sharding import PLAN_SCHEMA
from tasks.media.options import DecodeOptions
from tasks.output.listing import read_plan_facts
from tasks.output.store_files import open_parquet
from tasks.output.views import Views
from tasks.records import Entry


def entries_of(views: Views, rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], Entry]:
    """The plan's entry of every row (it knows tar members and keyframes), by (uri, frame of the row).

    Only the plans' ``shard_id`` columns are read whole; of the rest only the row groups that hold a wanted shard.
    """
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        wanted.setdefault(row["shard_id"], []).append(row)
    found: dict[tuple[str, int], Entry] = {}
    newest = views.listing.newest
    for info in reversed(newest.plans if newest is not None else ()):
        with open_parquet(views.listing.store, info.key) as plan:
            for group in range(plan.num_row_groups):
                for line in _lines_of(plan, group, sorted(wanted)):
                    entry = _entry(line)
                    end = entry.end_frame if entry.end_frame is not None else np.inf
                    for row in wanted[line["shard_id"]]:
                        if row["uri"] == entry.uri and entry.first_frame <= row["frame"] < end:
                            found[row["uri"], row["frame"]] = entry
    return found


def decoding_of(views: Views) -> DecodeOptions:
    """How the items that the views show were decoded: whoever shows pixels beside rows must see the same."""
    newest = views.listing.newest
    facts = None if newest is None else read_plan_facts(views.listing.store, newest.plans[-1].key)
    return DecodeOptions() if facts is None else DecodeOptions.of_version(facts.version.parameters)


def _lines_of(plan: pq.ParquetFile, group: int, shard_ids: list[str]) -> list[dict[str, Any]]:
    values = pa.array(shard_ids, pa.string())
    mask = pc.is_in(plan.read_row_group(group, columns=["shard_id"])["shard_id"], value_set=values)
    if not pc.any(mask).as_py():
        return []
    table = plan.read_row_group(group, columns=PLAN_SCHEMA.names)
    return table.filter(mask).to_pylist()


_ENTRY_FIELDS = ("uri", "etag", "size_bytes", "media", "container", "offset", "length", "first_frame", "end_frame",
                 "first_pts")  # fmt: skip


def _entry(line: dict[str, Any]) -> Entry:
    return Entry(**{name: line[name] for name in _ENTRY_FIELDS})
