"""Is it time to retrain? What has arrived since the last round of an output, and the rule that decides."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import ObjectGone
from infra.store import Store
from tasks.labels.label_sets import LabelSet, class_map_sha256
from tasks.loop.journal import LOOPS_FOLDER
from tasks.loop.schemas import ROUNDS, SPLIT_ITEMS
from tasks.loop.splits import read_manifest
from tasks.output import tables
from tasks.output.layout import canonical_json


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What an output has not seen yet.

    Args:
        last_run_id: loop of the last round that ended; None if there never was one.
        labels_changed: the human labels are others than that loop's.
        new_objects: objects of the unlabelled source that it did not know by name.
        signature: digest of the state of the data; the same state has the same one.
    """

    last_run_id: str | None
    labels_changed: bool
    new_objects: int
    signature: str


def reason_to_retrain(arrivals: Arrivals, min_new_objects: int) -> str | None:
    """Why a loop is due, in words; None while it is not."""
    if arrivals.last_run_id is None:
        return "no round has ended in this output yet"
    if arrivals.labels_changed:
        return f"the labels are others than those of {arrivals.last_run_id}"
    if arrivals.new_objects >= min_new_objects:
        return f"{arrivals.new_objects} unlabelled objects are new since {arrivals.last_run_id}"
    return None


def remember_labels(store: Store, run_id: str, labels: LabelSet) -> None:
    """Write down which human labels a loop works on."""
    store.put_if_absent(_labels_key(run_id), canonical_json({"labels": label_content(labels)}))


def label_content(labels: LabelSet) -> str:
    """Digest of what people said, hex: of everything but the groups, which a loop tells by itself."""
    content = f"{class_map_sha256(labels.classes)}\n{tables.content_digest(labels.table.drop_columns('group_id'))}"
    return hashlib.sha256(content.encode()).hexdigest()


def arrivals_since(store: Store, labels: LabelSet, inventory: Path) -> Arrivals:
    """Compare labels and inventory of this moment with the last round that ended.

    An object that was replaced under its old name is not new: the next loop takes it as it is then.

    Args:
        store: the loop's output.
        labels: as they are now.
        inventory: Parquet listing of the unlabelled source, see :mod:`tasks.ingest.inventory`.
    """
    content = label_content(labels)
    rounds = tables.read(store, ROUNDS).sort_by("finished_at")
    if rounds.num_rows == 0:
        objects = pq.read_metadata(inventory).num_rows
        return Arrivals(None, True, objects, _signature(None, content, objects))
    last = rounds.slice(rounds.num_rows - 1).to_pylist()[0]
    new = _new_objects(inventory, _known_uris(store, last["splits_manifest_sha256"]))
    changed = _labels_of(store, last["run_id"]) != content
    return Arrivals(last["run_id"], changed, new, _signature(last["run_id"], content, new))


def _signature(run_id: str | None, content: str, objects: int) -> str:
    return hashlib.sha256(canonical_json([run_id, content, objects])).hexdigest()[:16]


def _labels_key(run_id: str) -> str:
    return f"{LOOPS_FOLDER}{run_id}/labels.json"


def _labels_of(store: Store, run_id: str) -> str | None:
    try:
        return str(json.loads(store.get(_labels_key(run_id)))["labels"])
    except ObjectGone:
        return None


def _known_uris(store: Store, manifest_sha256: str) -> pa.Array:
    """Objects that were divided or kept out."""
    manifest = read_manifest(store, manifest_sha256)
    digests = [] if manifest is None else [manifest.items_sha256]
    return tables.read(store, SPLIT_ITEMS, digests)["uri"].combine_chunks().unique()


def _new_objects(inventory: Path, known: pa.Array) -> int:
    """Streamed: the inventory may be far larger than memory."""
    new = 0
    with pq.ParquetFile(inventory) as opened:
        for batch in opened.iter_batches(columns=["uri"]):
            new += batch.num_rows - (pa.compute.sum(pa.compute.is_in(batch["uri"], value_set=known)).as_py() or 0)
    return new
