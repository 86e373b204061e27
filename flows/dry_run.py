"""``--dry-run``: what a job would do and about how long it would take. Nothing is written, nothing is started.

The plan is made as the job would make it, but into a scratch folder; a few of its items are then carried out here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from flows.job import plan_options, with_champion
from flows.summary import Summary, nothing_to_do
from flows.work import WorkerNeeds, expected_slots, needs_of
from infra.store import is_local, open_store
from infra.telling import tell
from tasks.engine.prepare import PreparedJob, prepare_job
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, open_plan
from tasks.output.runs import new_run_id
from tasks.parameters import JobParameters
from tasks.product import Product
from tasks.records import Shard


def dry_run(product: Product, parameters: JobParameters) -> Summary:
    """What would be done, as plain JSON: items, objects, bytes, shards; seconds an item (measured), and altogether.

    Raises:
        VisionmillError: as the job itself would before it computes anything.
    """
    parameters = with_champion(parameters)
    needs = needs_of(parameters)
    prepared = prepare_job(product, parameters, run_id=new_run_id(), device=needs.device, is_tried=False)
    with tempfile.TemporaryDirectory(prefix="visionmill-") as scratch:
        folder = Path(scratch)
        inventory = take_inventory(
            parameters.source,
            folder=folder,
            images_root=parameters.images_root,
            follow_links=parameters.follow_links,
        )
        output = prepared.output
        if is_local(output.uri) and not Path(output.uri).exists():
            (folder / "nothing").mkdir()  # stands for an output that the job itself would make
            output = open_store(str(folder / "nothing"))
        (folder / "plans").mkdir()
        options = plan_options(parameters, prepared.job, slots=expected_slots(needs))
        plan = open_plan(output, prepared.version, inventory, options, into=open_store(str(folder / "plans")))
        if plan is None:
            return nothing_to_do(prepared, inventory, 0.0)
        return _foreseen(prepared, plan, list(_open_shards(plan, prepared)), needs, options.item_work)


def _open_shards(plan: Plan, prepared: PreparedJob) -> Iterator[Shard]:
    return plan.shards(plan.committed(prepared.output) if plan.joined else frozenset())


def _foreseen(prepared: PreparedJob, plan: Plan, shards: list[Shard], needs: WorkerNeeds, item_work: int) -> Summary:
    from tasks.engine.estimate import measure  # torch

    items = sum(_items(shard, item_work) for shard in shards)
    entries = [entry for shard in shards for entry in shard.entries]
    tell("trying some of the items")
    measured = measure(prepared.job, shards[len(shards) // 2])
    workers = _workers(needs, len(shards))
    estimate = None if measured is None else measured.start_s + items * measured.seconds_per_item / workers
    return {
        "run_id": None,
        "outcome": "dry_run",
        "plan_joined": plan.joined,
        "items": {"to_do": items},
        "objects": len({entry.uri for entry in entries}),
        "videos": len({entry.uri for entry in entries if entry.media == "video"}),
        "bytes": sum({entry.uri: entry.size_bytes for entry in entries}.values()),
        "shards": len(shards),
        "measured_items": 0 if measured is None else measured.items,
        "seconds_per_item": None if measured is None else round(measured.seconds_per_item, 4),
        "workers": workers,
        "estimated_seconds": None if estimate is None else round(estimate, 1),
        "output": prepared.output.uri,
        "version": prepared.version.fingerprint,
        "model": prepared.version.model,
        "exit_code": 0,
    }


def _items(shard: Shard, item_work: int) -> int:
    """Images, and frames of videos as far as planning could tell them."""
    images = [entry for entry in shard.entries if entry.media == "image"]
    of_videos = shard.work - sum(max(entry.size_bytes, item_work) for entry in images)
    has_videos = len(images) < len(shard.entries)
    return len(images) + (max(1, round(of_videos / item_work)) if has_videos else 0)


def _workers(needs: WorkerNeeds, num_shards: int) -> int:
    """As many as were asked for; of this machine else, as no cluster is started or joined to count them."""
    slots = expected_slots(needs)
    return slots if needs.workers != "auto" else max(1, min(slots, num_shards))
