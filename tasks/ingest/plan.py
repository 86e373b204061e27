"""The plan: the immutable list of shards of one run, itself created by one conditional create.

One open plan per version. While a plan has shards without a part, whoever comes joins it, whatever their own listing
says; plan n+1 is made only when plan n is committed whole. So two drivers, a restarted one and a zombie all aim at the
same object names, and no item can be committed under two shards.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import uuid
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError, UsageError
from infra.store import Store
from tasks.ingest.inventory import Inventory
from tasks.ingest.plan_entries import entry_batches
from tasks.ingest.selection import Selection, select_items
from tasks.ingest.sharding import ENTRY_SCHEMA, target_work, write_plan
from tasks.ingest.spill import local_disk, workbench
from tasks.output.layout import parse_part_key, parse_plan_key, parts_prefix, plan_key, plans_prefix, version_to_json
from tasks.output.versions import PLAN_FOOTER_KEY, VERSION_FOOTER_KEY, refuse_other_versions
from tasks.records import Entry, Shard, Version

SHARDS_PER_SLOT = 4
FINER = 8  # so many times shorter are the pieces of videos, where there are few objects
_ENTRY_COLUMNS = [name for name in ENTRY_SCHEMA.names if name != "work"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How to choose and divide. None of it changes a row, so none of it is part of the version.

    Attributes:
        shard_items: at most this many images in a shard.
        shard_bytes: bytes of images in a shard, about; one larger object makes a larger shard.
        video_frames: frames of video that weigh as much as a full shard; videos of 1.5 times as many are cut.
            A job that takes every n-th frame multiplies this by n.
        retry_failed: take exactly the items whose latest rows include a failed or quarantined one.
        fresh: take everything, also what is committed already.
        new_version: allow this version beside others in the output.
        limit: take at most so many objects, the first by name.
        slots: workers that share the plan: a small one is cut finer, so that each has several shards. 0: by size alone.
        least_items: images that a shard holds at least, where it is cut for that.
        cut_videos: whether the videos of a small plan are cut finer, too.
    """

    shard_items: int = 256
    shard_bytes: int = 64 << 20
    video_frames: int = 256
    retry_failed: bool = False
    fresh: bool = False
    new_version: bool = False
    limit: int | None = None
    slots: int = 0
    least_items: int = 4
    cut_videos: bool = True

    def __post_init__(self) -> None:
        for name in ("shard_items", "shard_bytes", "video_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.retry_failed and self.fresh:
            raise UsageError("retry_failed and fresh exclude each other: the one narrows, the other takes everything")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as a plan keeps it; a limit where one was set."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("limit", None)}

    @property
    def item_work(self) -> int:
        """What an image weighs at least, and a frame of video: bytes."""
        return -(-self.shard_bytes // self.shard_items)

    @property
    def selection(self) -> Selection:
        """Which lines of the inventory are asked for."""
        return "failed" if self.retry_failed else "all" if self.fresh else "new"


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan in the output's store. ``joined``: it was there already, and the caller's own inventory was not asked."""

    store: Store
    version: Version
    number: int
    num_shards: int
    num_entries: int
    num_objects: int
    total_bytes: int
    total_work: int
    created_at: str  # ISO 8601, UTC
    source: str
    joined: bool

    @property
    def key(self) -> str:
        """The plan's object below the output."""
        return plan_key(self.version, self.number)

    def through(self, store: Store) -> Plan:
        """The same plan, read from another store object: one that waits with patience."""
        return replace(self, store=store)

    def shards(self, skip: Set[str] = frozenset()) -> Iterator[Shard]:
        """The shards in plan order, without those named in ``skip``; one row group is in memory at a time."""
        last: tuple[str, str] | None = None
        with self.store.open(self.key) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                table, last = _with_continues(file.read_row_group(group), last)
                if skip:
                    wanted = pc.invert(pc.is_in(table["shard_id"], pa.array(sorted(skip), pa.string())))
                    table = table.filter(wanted)
                yield from _shards_of(table)

    def shard_ids(self) -> set[str]:
        """The names of all shards, without reading the entries."""
        found: set[str] = set()
        with self.store.open(self.key) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["shard_id"])["shard_id"]
                found.update(pc.unique(column).to_pylist())
        return found

    def committed(self, output: Store | None = None) -> set[str]:
        """The shards of this plan whose part exists: one LIST. ``output`` defaults to the plan's own store."""
        return self.shard_ids() & committed_shards(output or self.store, self.version)


def open_plan(
    output: Store, version: Version, inventory: Inventory, options: PlanOptions, *, into: Store | None = None
) -> Plan | None:
    """Join the version's open plan, or make the next one; None when there is nothing to do.

    Args:
        output: where results go; must hold no other version of the product unless ``options.new_version``.
        version: what is to be computed.
        inventory: what there is; its folder takes scratch files of about the inventory's size.
        options: how to choose and divide.
        into: where a plan is made that is only to be looked at; None makes it in the output.

    Raises:
        VersionMismatch: the output holds another version; names every difference.
        StoreError: as the store reports.
    """
    refuse_other_versions(output, version, new_version=options.new_version)
    numbers = _plan_numbers(output, version)
    committed = committed_shards(output, version) if numbers else set()
    if numbers:
        newest = load_plan(output, version, numbers[-1])
        if not newest.shard_ids() <= committed:
            return newest
    number = numbers[-1] + 1 if numbers else 1
    work = inventory.path.parent
    with local_disk(work), tempfile.TemporaryDirectory(prefix="plan-", dir=work) as scratch:
        path = Path(scratch) / "plan.parquet"
        token = uuid.uuid4().hex
        if not _make(path, output, version, inventory, options, numbers, committed, number, token):
            return None
        place = into or output
        created = place.put_file_if_absent(plan_key(version, number), path, token=token.encode())
    return load_plan(place, version, number, joined=not created)


def load_plan(output: Store, version: Version, number: int, *, joined: bool = True) -> Plan:
    """The plan ``number`` of a version; ObjectGone if there is none, StoreError if it is damaged."""
    key = plan_key(version, number)
    with output.open(key) as stream:
        try:
            facts: dict[str, Any] = json.loads((pq.read_metadata(stream).metadata or {})[PLAN_FOOTER_KEY])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise StoreError(
                f"the plan {output.uri_of(key)} is damaged: {error}",
                hint="Restore it; without it nobody knows which shards are open.",
            ) from error
    names = ("num_shards", "num_entries", "num_objects", "total_bytes", "total_work", "created_at", "source")
    return Plan(output, version, number, joined=joined, **{name: facts[name] for name in names})


def committed_shards(output: Store, version: Version) -> set[str]:
    """The ids of all shards of a version, of whatever plan, whose part exists: one LIST."""
    names = (parse_part_key(info.key) for info in output.list(parts_prefix(version)))
    return {name.shard_id for name in names if name is not None}


def _plan_numbers(output: Store, version: Version) -> list[int]:
    names = (parse_plan_key(info.key) for info in output.list(plans_prefix(version)))
    return sorted(name.number for name in names if name is not None)


def _make(
    path: Path,
    output: Store,
    version: Version,
    inventory: Inventory,
    options: PlanOptions,
    numbers: list[int],
    committed: set[str],
    number: int,
    token: str,
) -> bool:
    """Write the next plan to a local file; False when it would be empty."""
    selection = options.selection
    if not committed:
        if selection == "failed":
            return False
        selection = "all"
    with workbench(path.parent) as (connection, scratch):
        chosen = scratch / "chosen.parquet"
        count = select_items(
            connection,
            output,
            version,
            inventory=inventory.path,
            plans=numbers,
            committed_shards=committed,
            selection=selection,
            target=chosen,
            limit=options.limit,
        )
        if not count:
            return False
        weights = _Weights(options)
        several = SHARDS_PER_SLOT * options.slots
        piece_frames = options.video_frames
        if options.cut_videos and count < several:
            piece_frames = max(piece_frames // FINER, 1)
        total_work, batches = entry_batches(
            connection, chosen, scratch, weights.image, weights.shard, options.video_frames, piece_frames
        )
        several = min(several, total_work // (options.least_items * weights.image))
        target = target_work(total_work, weights.shard, several)
        writer, totals = write_plan(path, batches, number=number, fingerprint=version.fingerprint, target=target)
    facts = {
        "number": number,
        **asdict(totals),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code_version": package_version("visionmill"),
        "source": inventory.source,
        "options": options.to_json(),
        "token": token,
    }
    writer.add_key_value_metadata(
        {VERSION_FOOTER_KEY.decode(): json.dumps(version_to_json(version)), PLAN_FOOTER_KEY.decode(): json.dumps(facts)}
    )
    writer.close()
    return True


class _Weights:
    """Work in bytes-equivalents: an image weighs its bytes, but at least one ``shard_items``-th of a shard.

    So a shard that is full of work holds neither more than ``shard_items`` images nor more than ``shard_bytes``.
    """

    def __init__(self, options: PlanOptions) -> None:
        self.image = options.item_work
        self.shard = self.image * options.shard_items


def _with_continues(table: pa.Table, last: tuple[str, str] | None) -> tuple[pa.Table, tuple[str, str] | None]:
    """Add the column ``continues``: at the first row of a shard that goes on with a clip, the shard before it.

    Args:
        table: whole shards of a plan, none left out.
        last: uri and shard id of the row before the table.

    Returns:
        The table, and uri and shard id of its last row.
    """
    continues: list[str | None] = [None] * table.num_rows
    uris, ids = table["uri"], table["shard_id"]
    for row in np.flatnonzero(table["first_frame"].to_numpy()).tolist():  # few: later pieces of long videos
        before = last if row == 0 else (uris[row - 1].as_py(), ids[row - 1].as_py())
        if before is not None and before[0] == uris[row].as_py() and before[1] != ids[row].as_py():
            continues[row] = before[1]
    if table.num_rows:
        last = uris[-1].as_py(), ids[-1].as_py()
    return table.append_column("continues", pa.array(continues, pa.string())), last


def _shards_of(table: pa.Table) -> Iterator[Shard]:
    """The shards in a table of whole shards, with ``continues``."""
    ids, continues = table["shard_id"].to_pylist(), table["continues"].to_pylist()
    plans, indices, work = (table[name].to_pylist() for name in ("plan", "shard_index", "work"))
    lines = zip(*(table[name].to_pylist() for name in _ENTRY_COLUMNS), strict=True)
    entries = [Entry(**dict(zip(_ENTRY_COLUMNS, line, strict=True))) for line in lines]
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or ids[end] != ids[start]:
            yield Shard(
                shard_id=ids[start],
                plan=plans[start],
                index=indices[start],
                entries=tuple(entries[start:end]),
                work=float(sum(work[start:end])),
                continues=continues[start],
            )
            start = end
