"""What is committed in an output: one LIST, fixed from then on. Views, exports, checks and reports start from here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.store import ObjectInfo, Store
from tasks.records import Product
from tasks.results.layout import PLANS_FOLDER, parse_part_key, parse_plan_key, product_prefix
from tasks.results.store_files import open_parquet

_FOOTER_THREADS = 16
_SAMPLED_FOOTERS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One committed shard."""

    info: ObjectInfo
    shard_id: str


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """The committed shards and the plans of one version at the moment of the listing."""

    fingerprint: str
    parts: tuple[Part, ...]  # in key order
    plans: tuple[ObjectInfo, ...]  # plan 1 first


@dataclass(frozen=True, slots=True)
class Listing:
    """All versions of one product in an output; ``strangers`` are objects between the parts that are no parts."""

    store: Store
    product: Product
    versions: tuple[ListedVersion, ...]  # the newest last
    strangers: tuple[ObjectInfo, ...]

    @property
    def newest(self) -> ListedVersion | None:
        """The version that ``items`` shows: of those with committed rows, the one whose newest plan is latest."""
        return next((version for version in reversed(self.versions) if version.parts), None)


def list_committed(store: Store, product: Product = "segments") -> Listing:
    """List an output once. Nothing committed yet is an empty listing; BucketMissing if there is no such place.

    Parts are listed before plans: a plan is created before its parts, so every listed part has its plan listed.
    """
    parts: dict[str, list[Part]] = {}
    strangers = []
    for info in store.list(product_prefix(product)):
        name = parse_part_key(info.key)
        if name is None:
            strangers.append(info)
        else:
            parts.setdefault(name.fingerprint, []).append(Part(info, name.shard_id))
    plans: dict[str, list[ObjectInfo]] = {}
    for info in store.list(PLANS_FOLDER):
        plan = parse_plan_key(info.key)
        if plan is not None:
            plans.setdefault(plan.fingerprint, []).append(info)
    versions = [
        ListedVersion(fingerprint, tuple(parts.get(fingerprint, ())), tuple(plans.get(fingerprint, ())))
        for fingerprint in sorted(parts.keys() | plans.keys())
    ]
    if len(versions) > 1:
        moments = {version.fingerprint: newest_moment(store, version) for version in versions}
        versions.sort(key=lambda version: moments[version.fingerprint])
    return Listing(store, product, tuple(versions), tuple(strangers))


def plan_of_shards(store: Store, version: ListedVersion) -> dict[str, int]:
    """Shard id to plan number, from the plans' own ``shard_id`` columns (dictionary-encoded: little is read)."""
    numbers: dict[str, int] = {}
    for info in version.plans:
        name = parse_plan_key(info.key)
        assert name is not None, info.key
        with open_parquet(store, info.key) as plan:
            for row_group in range(plan.num_row_groups):
                column = plan.read_row_group(row_group, columns=["shard_id"]).column(0)
                numbers.update(dict.fromkeys(column.unique().to_pylist(), name.number))
    return numbers


def newest_moment(store: Store, version: ListedVersion) -> datetime:
    """When the newest plan of a version with committed rows was at work, to compare versions by."""
    never = datetime.min.replace(tzinfo=UTC)
    if not version.parts:
        return never
    plan_of = plan_of_shards(store, version) if len(version.plans) > 1 else {}
    latest = max((plan_of.get(part.shard_id, 0) for part in version.parts), default=0)
    candidates = [part for part in version.parts if plan_of.get(part.shard_id, 0) == latest]
    step = max(1, len(candidates) // _SAMPLED_FOOTERS)
    footers = read_footers(store, candidates[::step])
    return max((_processed_at(footer) or never for _, footer in footers), default=never)


def read_footers(
    store: Store, parts: list[Part]
) -> Iterator[tuple[Part, pq.FileMetaData | StoreError | pa.ArrowInvalid]]:
    """Footers of parts, many at once, in order; what cannot be read comes as the error."""

    def footer(part: Part) -> pq.FileMetaData | StoreError | pa.ArrowInvalid:
        try:
            with open_parquet(store, part.info.key) as opened:
                return opened.metadata
        except (StoreError, pa.ArrowInvalid) as error:
            return error

    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        yield from zip(parts, pool.map(footer, parts), strict=True)


def _processed_at(footer: pq.FileMetaData | Exception) -> datetime | None:
    """The latest ``processed_at`` of a part, from its statistics alone."""
    if isinstance(footer, Exception):
        return None
    index = next(i for i in range(footer.num_columns) if footer.schema.column(i).path == "processed_at")
    found = [footer.row_group(group).column(index).statistics for group in range(footer.num_row_groups)]
    moments = [statistics.max for statistics in found if statistics is not None and statistics.has_min_max]
    return max(moments, default=None)
