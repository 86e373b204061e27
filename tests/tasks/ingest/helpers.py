"""Small builders that the ingest tests share."""

from __future__ import annotations

import datetime
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.store import Store, open_store
from tasks.ingest.inventory import Inventory, take_inventory
from tasks.ingest.plan import Plan
from tasks.output.layout import make_version, part_key
from tasks.output.schema import schema_named
from tasks.records import Version


def fill(root: str, objects: dict[str, bytes]) -> Store:
    """Put objects below a root and return its store."""
    store = open_store(root)
    for key, data in objects.items():
        store.put(key, data)
    return store


def listed(source: str, folder: Path, **options: Any) -> tuple[Inventory, list[dict[str, Any]]]:
    """The inventory of a source, and its lines sorted by uri."""
    inventory = take_inventory(source, folder=folder, **options)
    return inventory, sorted(pq.read_table(inventory.path).to_pylist(), key=lambda line: line["uri"])


def tar_of(members: dict[str, bytes], *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar with these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def version_of(**parameters: object) -> Version:
    """A version of segments; keyword arguments are its parameters, ``model`` sets the model."""
    model = str(parameters.pop("model", "tiny@1"))
    return make_version("segments", model=model, model_digest="ab" * 32, parameters=parameters, schema="segments.v1")


def listing(folder: Path, lines: list[tuple[str, str, int]]) -> Inventory:
    """The inventory of a ready listing of (uri, etag, size)."""
    folder.mkdir(parents=True, exist_ok=True)
    uris, etags, sizes = zip(*lines, strict=True) if lines else ((), (), ())
    table = pa.table(
        {"uri": pa.array(uris, pa.string()), "etag": pa.array(etags, pa.string()), "size": pa.array(sizes, pa.int64())}
    )
    pq.write_table(table, folder / "listing.parquet")
    return take_inventory(str(folder / "listing.parquet"), folder=folder)


def commit(plan: Plan, *, only: set[str] | None = None, failing: frozenset[str] = frozenset()) -> None:
    """Put the parts of a plan's shards, with one row an entry; the uris in ``failing`` get status failed."""
    schema = schema_named("segments", "segments.v1")
    for shard in plan.shards():
        if only is not None and shard.shard_id not in only:
            continue
        rows = [
            {
                "uri": entry.uri,
                "etag": entry.etag,
                "media": entry.media,
                "frame": entry.first_frame,
                "status": "failed" if entry.uri in failing else "ok",
                "model": plan.version.model,
                "run_id": "run",
                "shard_id": shard.shard_id,
                "processed_at": datetime.datetime.now(datetime.UTC),
            }
            for entry in shard.entries
        ]
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
        plan.store.put(part_key(plan.version, shard.shard_id), out.getvalue())


def planned(plan: Plan | None) -> list[str]:
    """The uris of a plan in plan order; nothing for no plan."""
    return [] if plan is None else [entry.uri for shard in plan.shards() for entry in shard.entries]
