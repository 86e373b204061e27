"""What is committed in an output: one LIST, fixed from then on. Views, exports, checks and reports start from here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError, UsageError
from infra.store import ObjectInfo, Store
from tasks.output.layout import PLANS_FOLDER, parse_part_key, parse_plan_key, product_prefix, version_from_json
from tasks.output.store_files import open_parquet
from tasks.output.versions import PLAN_FOOTER_KEY, VERSION_FOOTER_KEY
from tasks.product import Product, find_product, products
from tasks.records import Version

_FOOTER_THREADS = 16


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
    product: str
    versions: tuple[ListedVersion, ...]  # the newest last
    strangers: tuple[ObjectInfo, ...]

    @property
    def newest(self) -> ListedVersion | None:
        """The version that ``items`` shows: of those with committed rows, the one whose newest plan is latest."""
        return next((version for version in reversed(self.versions) if version.parts), None)


def only_version(listing: Listing, fingerprint: str) -> Listing:
    """A listing that holds one version alone.

    Args:
        fingerprint: of the version, or its beginning.

    Raises:
        UsageError: no version is called so, or several are.
    """
    held = [version for version in listing.versions if version.parts]
    found = [version for version in held if version.fingerprint.startswith(fingerprint)]
    if len(found) != 1:
        names = ", ".join(version.fingerprint for version in held)
        raise UsageError(
            f"{len(found)} versions in {listing.store.uri} are called {fingerprint!r}", hint=f"versions: {names}"
        )
    return replace(listing, versions=tuple(found))


def held_products(store: Store) -> list[str]:
    """Names of the products that an output holds rows or plans of, sorted; also of such as are not installed here.

    Raises:
        BucketMissing: there is no such place.
    """
    held = {name for name in products() if _holds_parts(store, name)}
    plans: dict[str, str] = {}
    for info in store.list(PLANS_FOLDER):
        plan = parse_plan_key(info.key)
        if plan is not None:
            plans[plan.fingerprint] = info.key
    facts = (read_plan_facts(store, key) for key in plans.values())
    return sorted(held | {each.version.product for each in facts if each is not None})


def _holds_parts(store: Store, product: str) -> bool:
    return any(parse_part_key(info.key) is not None for info in store.list(product_prefix(product)))


def product_in(store: Store, name: str | None = None) -> Product:
    """The product whose rows an output holds; of several the one that is asked for.

    Raises:
        UsageError: the output holds no results of a job, or not those, or those of several products and none is named;
            or there is no such product.
    """
    held = held_products(store)
    if name is not None:
        wanted = find_product(name)
        if wanted.name in held:
            return wanted
    if not held:
        raise UsageError(
            f"{store.uri} holds no results of a job", hint="give the folder or prefix that a job was given as OUTPUT"
        )
    if name is not None or len(held) > 1:
        raise UsageError(
            f"{store.uri} holds {' and '.join(held)}" + ("" if name is None else f", no {name}"),
            hint=f"say which: --product {held[0]}",
        )
    return find_product(held[0])


def list_committed(store: Store, product: str) -> Listing:
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
        moments = {version.fingerprint: _newest_moment(store, version) for version in versions}
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


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What a plan's footer says."""

    version: Version
    created_at: str  # ISO 8601, UTC: sorts by time
    facts: dict[str, Any]  # num_shards, num_entries, source, options, ...


def read_plan_facts(store: Store, key: str) -> PlanFacts | None:
    """The footer of a plan, or None when the object is no readable plan."""
    try:
        with open_parquet(store, key) as plan:
            metadata = plan.metadata.metadata or {}
        facts = json.loads(metadata[PLAN_FOOTER_KEY])
        return PlanFacts(version_from_json(json.loads(metadata[VERSION_FOOTER_KEY])), str(facts["created_at"]), facts)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def _newest_moment(store: Store, version: ListedVersion) -> str:
    """When the newest plan of a version was made, to compare versions by; "" sorts first."""
    facts = read_plan_facts(store, version.plans[-1].key) if version.plans else None
    return "" if facts is None else facts.created_at


def read_footers(
    store: Store, parts: Iterable[Part]
) -> Iterator[tuple[Part, pq.FileMetaData | StoreError | pa.ArrowInvalid]]:
    """Footers of parts, many at once, in order; what cannot be read comes as the error."""

    def footer(part: Part) -> pq.FileMetaData | StoreError | pa.ArrowInvalid:
        try:
            with open_parquet(store, part.info.key) as opened:
                return opened.metadata
        except (StoreError, pa.ArrowInvalid) as error:
            return error

    waiting = iter(parts)
    with ThreadPoolExecutor(_FOOTER_THREADS, thread_name_prefix="footers") as pool:
        while chunk := list(islice(waiting, 8 * _FOOTER_THREADS)):
            yield from zip(chunk, pool.map(footer, chunk), strict=True)
