"""Files that rows name: written before the part that names them, swept when it turns out that no row does.

    files/<product>/version=<fingerprint>/<plan>/<shard id>/<item>.<ending>

A file is created once, under a name that follows from the item, its shard and the version. So every attempt at a shard
names the same files: a second one finds those of the first and names what is there, byte for byte, whatever it computed
itself. Only then is the part committed, so a row without its file cannot be. A file without a row can: its attempt
died, and the item came to nothing the next time. It is removed at the start of a later run, once its plan is closed:
then the committed parts say for ever which files are named.

Where a store ignores conditional creates two attempts would overwrite each other, so there the name holds the attempt,
too, and what the loser wrote is swept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from infra.store import ObjectInfo, Store
from tasks.output.encoding import Row
from tasks.output.layout import files_prefix, part_key, swept_key, swept_prefix
from tasks.output.listing import ListedVersion, list_committed, plan_of_shards
from tasks.output.store_files import open_parquet
from tasks.product import FileSink, StoredFile, find_product
from tasks.records import Shard, Version


def item_name(row: Row, attempt_id: str | None = None) -> str:
    """What the files of an item are called, without ending."""
    name = hashlib.sha256(json.dumps([row.uri, row.etag, row.frame]).encode()).hexdigest()[:32]
    return name if attempt_id is None else f"{name}-{attempt_id}"


def store_files(store: Store, prefix: str, name: str, contents: Mapping[str, bytes]) -> dict[str, StoredFile]:
    """Create the files of one item, or find those that an earlier attempt created.

    Args:
        prefix: of the shard's files.
        name: of the item.
        contents: ending -> bytes.

    Raises:
        StoreError: as the store reports.
    """
    stored = {}
    for ending, data in contents.items():
        key = f"{prefix}{name}.{ending}"
        if not store.put_if_absent(key, data):
            data = store.get(key)
        stored[ending] = StoredFile(key, hashlib.sha256(data).hexdigest(), len(data))
    return stored


def named_files(store: Store, version: Version, shard_id: str, sink: FileSink) -> Iterator[StoredFile]:
    """All files that the committed part of a shard names."""
    with open_parquet(store, part_key(version, shard_id)) as part:
        for group in range(part.num_row_groups):
            for row in part.read_row_group(group, columns=list(sink.columns)).to_pylist():
                yield from sink.named(row)


def check_files(
    store: Store, version: Version, shard: Shard, rows: list[Mapping[str, Any]], sink: FileSink, *, deep: bool
) -> Iterator[str]:
    """One line for each file that a row of a shard names and that is not there as it says.

    Args:
        rows: with ``uri``, ``frame`` and the sink's columns.
        deep: also read every file.
    """
    prefix = files_prefix(version, shard.plan, shard.shard_id)
    sizes = {info.key: info.size_bytes for info in store.list(prefix)}
    for row in rows:
        for file in sink.named(row):
            where = f"row of {row['uri']!r}, frame {row['frame']}: {file.key}"
            if not file.key.startswith(prefix):
                yield f"{where} is no file of this shard"
            elif sizes.get(file.key) is None:
                yield f"{where} is not there"
            elif sizes[file.key] != file.size_bytes:
                yield f"{where} has {sizes[file.key]} bytes, the row says {file.size_bytes}"
            elif deep and hashlib.sha256(store.get(file.key)).hexdigest() != file.sha256:
                yield f"{where} has other bytes than the row says"


def sweep_files(store: Store, version: Version) -> int:
    """Remove what no row names of the closed plans of a version, each plan once; returns how many files that were.

    Files of an open plan stay: attempts may still name them.
    """
    sink = find_product(version.product).sink
    if sink is None:
        return 0
    listing = list_committed(store, version.product)
    listed = next((each for each in listing.versions if each.fingerprint == version.fingerprint), None)
    if listed is None:
        return 0
    plans = _closed_plans(store, version, listed)
    return sum(_sweep_plan(store, version, plan, shards, sink) for plan, shards in plans.items())


def _closed_plans(store: Store, version: Version, listed: ListedVersion) -> dict[int, set[str]]:
    """Number -> shards of each plan that is committed whole and whose files were not swept yet."""
    swept = {info.key for info in store.list(swept_prefix(version))}
    shards: dict[int, set[str]] = {}
    for shard_id, plan in plan_of_shards(store, listed).items():
        shards.setdefault(plan, set()).add(shard_id)
    committed = {part.shard_id for part in listed.parts}
    return {
        plan: own for plan, own in sorted(shards.items()) if own <= committed and swept_key(version, plan) not in swept
    }


def _sweep_plan(store: Store, version: Version, plan: int, shards: set[str], sink: FileSink) -> int:
    prefix, removed = files_prefix(version, plan), 0

    def shard_of(info: ObjectInfo) -> str:
        return info.key.removeprefix(prefix).partition("/")[0]

    for shard_id, infos in groupby(store.list(prefix), key=shard_of):
        if shard_id not in shards:
            continue  # nobody's: somebody else put it there
        named = {file.key for file in named_files(store, version, shard_id, sink)}
        for key in [info.key for info in infos if info.key not in named]:
            store.delete(key)
            removed += 1
    store.put(swept_key(version, plan), json.dumps({"plan": plan, "removed": removed}).encode())
    return removed
