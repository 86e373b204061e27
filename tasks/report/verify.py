"""Recount an output: every planned item has its row, nothing is there twice, every footer tells the truth.

Plans and parts are compared shard by shard while both are streamed, so memory stays bounded by a few shards.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from infra.errors import DatasetError, StoreError
from infra.store import ObjectInfo, Store, open_store
from infra.telling import tell
from tasks.ingest.plan import load_plan
from tasks.loop.replay import replay
from tasks.loop.schemas import MODELS, ROUNDS
from tasks.loop.splits import read_manifest
from tasks.output.layout import PLANS_FOLDER, is_execution_key, parse_plan_key
from tasks.output.listing import ListedVersion, held_products, list_committed, product_in, read_plan_facts
from tasks.output.tables import list_tables, read
from tasks.product import find_product
from tasks.records import Entry, Shard, Version
from tasks.report.part_checks import PartFindings, check_part_object

_THREADS = 8
_MAX_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was counted, and one line per problem (the first 200; ``num_problems`` counts all).

    ``open_shards`` are planned and not committed; they are a problem, because then not every planned item has its row.
    """

    num_rows: int
    num_ok: int
    num_failed: int
    num_quarantined: int
    num_versions: int
    num_plans: int
    num_shards: int
    open_shards: int
    num_problems: int
    problems: tuple[str, ...]
    num_rounds: int = 0  # of a loop, decided again from what is stored


@dataclass(slots=True)
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    versions: int = 0
    plans: int = 0
    shards: int = 0
    rounds: int = 0
    open: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if self.num_problems <= _MAX_PROBLEMS:
            self.problems.append(text)


def verify(output: str, *, deep: bool = False, product: str | None = None) -> VerifyReport:
    """Check all versions of an output against their plans.

    Args:
        output: folder or ``s3://bucket/prefix`` of a job's output.
        deep: also read every column, check page checksums, and what the product says of all that was found.
        product: whose rows; None: of all products that are there.

    Raises:
        UsageError: the place holds no output of a job, or nothing of the product.
        StoreError: the output cannot be listed. What is wrong inside of it is in the report, not raised.
    """
    tell(f"reading the plans of {output}")
    store, tally = open_store(output), _Tally()
    held = held_products(store) if product is None else []
    has_rounds = product is None and bool(list_tables(store).get(ROUNDS.name))
    if held or not has_rounds:
        for name in held if len(held) > 1 else [product_in(store, product).name]:
            _check_product(store, name, tally, deep=deep)
    if has_rounds:
        _check_rounds(store, tally)
    for info in store.list(PLANS_FOLDER):
        if parse_plan_key(info.key) is None and not is_execution_key(info.key):
            tally.problem(f"{info.key}: an object among the plans that is none")
    return VerifyReport(
        num_rows=tally.counts.total(),
        num_ok=tally.counts["ok"],
        num_failed=tally.counts["failed"],
        num_quarantined=tally.counts["quarantined"],
        num_versions=tally.versions,
        num_plans=tally.plans,
        num_shards=tally.shards,
        open_shards=tally.open,
        num_problems=tally.num_problems,
        problems=tuple(tally.problems),
        num_rounds=tally.rounds,
    )


def _check_rounds(store: Store, tally: _Tally) -> None:
    """Decide every recorded round of a loop again; one whose calibrators were not kept, as once, is not counted."""
    label_sets = {row["model_id"]: row["label_set_id"] for row in read(store, MODELS).to_pylist()}
    rounds = {(row["run_id"], row["round"]): row for row in read(store, ROUNDS).to_pylist()}
    for (run_id, number), record in sorted(rounds.items()):
        try:
            again = replay(store, run_id, number, label_set_id=_human_labels(store, record, label_sets))
        except DatasetError:
            continue
        tally.rounds += 1
        if not again.same:
            tally.problem(f"round {number} of {run_id}: decided again from its rows, other labels are accepted")


def _human_labels(store: Store, record: Mapping[str, Any], by_model: Mapping[str, str]) -> str:
    """Digest of the human labels of a round: those of its student, else, where it had none, of its division."""
    if record["candidate_id"] is not None:
        return by_model[record["candidate_id"]]
    manifest = read_manifest(store, record["splits_manifest_sha256"])
    if manifest is None:
        raise DatasetError(f"round {record['round']} of {record['run_id']}: the manifest of its splits is gone")
    return manifest.label_set_id


def _check_product(store: Store, product: str, tally: _Tally, *, deep: bool) -> None:
    listing = list_committed(store, find_product(product).name)
    for info in listing.strangers:
        tally.problem(f"{info.key}: an object among the parts that is none")
    for version in listing.versions:
        _check_version(store, version, product, tally, deep=deep)


def _check_version(store: Store, listed: ListedVersion, product: str, tally: _Tally, *, deep: bool) -> None:
    """All plans of a version in order; parts that no plan asked for are named at the end."""
    parts = {part.shard_id: part.info for part in listed.parts}
    unasked = set(parts)
    for position, info in enumerate(listed.plans, start=1):
        name, facts = parse_plan_key(info.key), read_plan_facts(store, info.key)
        if facts is None or name is None:
            tally.problem(f"{info.key}: is no readable plan")
            continue
        if facts.version.product != product:
            return  # plans of another product share the folder
        if name.number != position:
            tally.problem(f"{info.key}: plan {position} is missing before it")
        if facts.version.fingerprint != listed.fingerprint:
            tally.problem(f"{info.key}: is of version {facts.version.fingerprint}")
            continue
        tally.plans += 1
        _check_plan(_Plan(store, facts.version, name.number, info.key, parts, deep), unasked, tally)
    tally.versions += 1
    for shard_id in sorted(unasked):
        tally.problem(f"{parts[shard_id].key}: no plan asks for this shard")


@dataclass(frozen=True, slots=True)
class _Plan:
    store: Store
    version: Version
    number: int
    key: str
    parts: dict[str, ObjectInfo]
    deep: bool


def _check_plan(plan: _Plan, unasked: set[str], tally: _Tally) -> None:
    missing: list[str] = []
    try:
        for shard, findings in _checked_shards(plan, tally):
            tally.shards += 1
            tell("recounting", tally.shards, unit="shards")
            unasked.discard(shard.shard_id)
            if findings is None:
                missing.append(shard.shard_id)
                continue
            tally.counts.update(findings.counts)
            for problem in findings.problems:
                tally.problem(problem)
    except StoreError as error:
        tally.problem(f"{plan.key}: cannot be read: {error.message}")
    tally.open += len(missing)
    if missing:
        tally.problem(
            f"plan {plan.number} is not complete: {len(missing)} shards are not committed"
            f" ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); running the job again goes on with them"
        )


def _checked_shards(plan: _Plan, tally: _Tally) -> Iterator[tuple[Shard, PartFindings | None]]:
    """Every shard of a plan with what its part shows (None: not committed), a few parts ahead."""
    waiting: deque[tuple[Shard, Future[PartFindings] | None]] = deque()
    last: Entry | None = None
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        for shard in load_plan(plan.store, plan.version, plan.number).shards():
            last = _check_order(shard, last, plan, tally)
            info = plan.parts.get(shard.shard_id)
            future = None
            if info is not None:
                future = pool.submit(check_part_object, plan.store, plan.version, shard, info, deep=plan.deep)
            waiting.append((shard, future))
            if len(waiting) > 2 * _THREADS:
                done, of = waiting.popleft()
                yield done, None if of is None else of.result()
        for done, of in waiting:
            yield done, None if of is None else of.result()


def _check_order(shard: Shard, last: Entry | None, plan: _Plan, tally: _Tally) -> Entry | None:
    """No item may be planned twice: entries are sorted, and pieces of a video do not overlap."""
    for entry in shard.entries:
        if last is not None:
            same = entry.uri == last.uri
            overlaps = same and (last.end_frame is None or entry.first_frame < last.end_frame)
            if overlaps or entry.uri < last.uri:
                tally.problem(
                    f"{plan.key}: {entry.uri!r} from frame {entry.first_frame} is planned twice or out of order"
                )
        last = entry
    return last
