"""Which labelled items train, calibrate, judge (gate) or stay sealed (test): decided once, by group, and kept.

A group (a video, a scene, a cluster of near-duplicates) is never divided. Groups are lined up by the rarest class they
hold and, within it, by a salted hash of their name; then each goes to the split that is furthest behind its share. So
every run of neighbours is divided in about the asked proportions, also the groups of a rare class, and the order in
which files were listed changes nothing. Groups that an earlier manifest knows keep their split for ever: a gate or test
item must never have been trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import DatasetError, UsageError
from infra.store import Store
from tasks.labels.folds import in_line
from tasks.labels.label_sets import LabelSet, regroup
from tasks.loop.near import MAX_DISTANCE, Clusters, near_pairs
from tasks.loop.schemas import SPLIT_ITEMS
from tasks.loop.split_names import CALIBRATION, GATE, SPLITS, TEST, TRAIN, split_name
from tasks.output.layout import canonical_json
from tasks.output.tables import append, content_digest, read, table_of

AUTO, ITEM, FOLDER = "auto", "item", "folder"
EXCLUDED = "excluded"
DEFAULT_SHARES = {TRAIN: 0.5, CALIBRATION: 0.2, GATE: 0.15, TEST: 0.15}
FORMAT = "visionmill.splits.v2"
SPLITS_FOLDER = "splits/"


def group_by(labels: LabelSet, rule: str) -> LabelSet:
    """The label set with groups told by names; "item" and "auto" leave those that its file names.

    Args:
        rule: see :func:`names_by`.
    """
    if rule in (ITEM, AUTO):
        return labels
    names = names_by(rule, labels.table["uri"].to_pylist())
    return regroup(labels, dict(zip(labels.table["image_id"].to_pylist(), names, strict=True)))


def names_by(rule: str, uris: Sequence[str]) -> list[str]:
    """What groups are called by a rule: "folder", or a regular expression over the uri.

    Args:
        rule: the expression's first group (or the whole match) names the group; a uri without a match is its own.

    Raises:
        UsageError: it is no regular expression.
    """
    if rule == FOLDER:
        return [uri.rpartition("/")[0] for uri in uris]
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise UsageError(f"{rule!r} is no regular expression: {error}") from None
    found = [expression.search(uri) for uri in uris]
    return [uri if match is None else match[match.re.groups and 1] for uri, match in zip(uris, found, strict=True)]


def join_near_duplicates(labels: LabelSet, fingerprints: pa.Table, max_distance: int = MAX_DISTANCE) -> LabelSet:
    """The label set with groups joined that share a duplicate, exact or near; a joined group has its first name."""
    rows = fingerprints.select(["image_id", "sha256", "phash64"]).to_pylist()
    prints = {row["image_id"]: row for row in rows}
    ids, groups = labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist()
    names = sorted(set(groups))
    place = {name: k for k, name in enumerate(names)}
    of_item = [place[group] for group in groups]
    clusters = Clusters(len(names))
    first_with: dict[str, int] = {}
    for item, group in zip(ids, of_item, strict=True):
        digest = prints.get(item, {}).get("sha256")
        if digest is not None:
            clusters.join(first_with.setdefault(digest, group), group)
    hashed = [k for k, item in enumerate(ids) if prints.get(item, {}).get("phash64") is not None]
    hashes = np.array([prints[ids[k]]["phash64"] for k in hashed], np.int64)
    different, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    owner = [of_item[hashed[k]] for k in first.tolist()]
    for k, place in zip(hashed, which.tolist(), strict=True):  # equal hashes first: a thousand copies are one hash
        clusters.join(of_item[k], owner[place])
    for i, j, _ in near_pairs(different, different, max_distance).tolist():
        clusters.join(owner[i], owner[j])
    joined = {item: names[clusters.find(group)] for item, group in zip(ids, of_item, strict=True)}
    return regroup(labels, joined)


def split_groups(
    labels: LabelSet, shares: Mapping[str, float], *, salt: str, previous: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Group id -> split.

    Args:
        labels: groups are taken as they stand; see :func:`group_by` and :func:`join_near_duplicates`.
        shares: split -> share of the items; they sum to 1.
        salt: another salt, another division.
        previous: group id -> split of an earlier manifest (see :func:`keep_previous`); kept.

    Raises:
        UsageError: shares that are none.
        DatasetError: fewer groups than splits, so that one of them would be empty.
    """
    _check_shares(shares)
    sizes = Counter(labels.table["group_id"].to_pylist())
    kept = {group: split for group, split in (previous or {}).items() if group in sizes}
    if len(sizes) < sum(share > 0 for share in shares.values()):
        raise DatasetError(f"{len(sizes)} groups cannot be divided into {dict(shares)}", hint="Label more groups.")
    given = dict.fromkeys(shares, 0)
    chosen: dict[str, str] = {}
    seen = 0
    for group in in_line(labels, sizes, salt):
        seen += sizes[group]
        behind = {split: share * seen - given[split] for split, share in shares.items() if share > 0}
        chosen[group] = kept.get(group) or max(behind, key=lambda split: behind[split])
        given[chosen[group]] = given.get(chosen[group], 0) + sizes[group]
    return chosen


def _check_shares(shares: Mapping[str, float]) -> None:
    strangers = set(shares) - set(SPLITS)
    if strangers or any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise UsageError(f"shares of {', '.join(SPLITS)} must be 0 or more and sum to 1, got {dict(shares)}")


@dataclass(frozen=True, slots=True)
class SplitManifest:
    """What was decided, in a form whose digest names it.

    Args:
        label_set_id: digest of the human labels.
        class_map_sha256: of their classes.
        salt, shares: as asked for.
        items_sha256: content digest of the ``split_items`` table: ids, groups, hashes and splits of every item.
        counts: items by split.
        leakage: what the firewall kept out of the unlabelled items, by "reason vs split".
    """

    label_set_id: str
    class_map_sha256: str
    salt: str
    shares: dict[str, float]
    items_sha256: str
    counts: dict[str, int]
    leakage: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the format's name."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def manifest_sha256(self) -> str:
        """The manifest's name, hex."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()


def read_manifest(store: Store, sha256: str) -> SplitManifest | None:
    """A stored manifest by its name; None where it is gone. One of the first format comes with today's words."""
    key = f"{SPLITS_FOLDER}{sha256}.json"
    if not any(info.key == key for info in store.list(key)):
        return None
    content = json.loads(store.get(key))
    if content.pop("format") == FORMAT:
        return SplitManifest(**content)
    content["shares"], content["counts"] = (
        {split_name(name): value for name, value in content[part].items()} for part in ("shares", "counts")
    )
    content["leakage"] = {_split_last(reason): count for reason, count in content["leakage"].items()}
    return SplitManifest(**content)


def _split_last(reason: str) -> str:
    """``group vs G`` as ``group vs gate``."""
    first, _, last = reason.rpartition(" ")
    return f"{first} {split_name(last)}"


def same_gate(store: Store, items: pa.Table, manifest: SplitManifest) -> set[str]:
    """Names of the manifests whose gate set is this one's, or holds at least half of it.

    The gate may be looked at so many times, whatever the division was called at the time: another salt, other shares or
    other unlabelled items change the name and not the gate, because an output keeps what it once decided.

    Args:
        items: ``split_items.v2`` of ``manifest``.
    """
    gate = set(image_ids(items, GATE))
    found = {manifest.manifest_sha256}
    for info in store.list(SPLITS_FOLDER):
        name = info.key.removeprefix(SPLITS_FOLDER).removesuffix(".json")
        earlier = None if name in found else read_manifest(store, name)
        if earlier is not None:
            known = image_ids(read(store, SPLIT_ITEMS, [earlier.items_sha256]), GATE)
            if 2 * len(gate.intersection(known)) >= len(gate):
                found.add(name)
    return found


def labelled_rows(labels: LabelSet, splits: Mapping[str, str], fingerprints: pa.Table | None) -> pa.Table:
    """``split_items.v2`` of the labelled items: group id -> split, with the hashes of ``fingerprints`` where given."""
    prints = {} if fingerprints is None else {row["image_id"]: row for row in fingerprints.to_pylist()}
    rows = []
    for row in labels.table.select(["image_id", "uri", "group_id"]).to_pylist():
        known = prints.get(row["image_id"], {})
        split = splits[row["group_id"]]
        reason = "straddles" if split == EXCLUDED else None
        prints_of = {"sha256": known.get("sha256"), "phash64": known.get("phash64")}
        rows.append({**row, **prints_of, "split": split, "reason": reason})
    return table_of(SPLIT_ITEMS, rows)


def keep_previous(labels: LabelSet, previous: pa.Table) -> tuple[LabelSet, dict[str, str]]:
    """What an earlier manifest decided, in terms of today's groups: group id -> split, for :func:`split_groups`.

    Items decide, not names: a group that was joined with a new one keeps its split. Where a new item is near to items
    of two splits, these keep theirs and the new one is excluded: nowhere would it be harmless.

    Returns:
        The label set, such groups divided, and the splits that are kept.
    """
    before = zip(previous["image_id"].to_pylist(), previous["split"].to_pylist(), strict=True)
    decided = {image_id: split for image_id, split in before if split in SPLITS[:4]}
    held: dict[str, set[str]] = defaultdict(set)
    pairs = list(zip(labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist(), strict=True))
    for image_id, group in pairs:
        if image_id in decided:
            held[group].add(decided[image_id])
    kept = {group: next(iter(splits)) for group, splits in held.items() if len(splits) == 1}
    divided = {}
    for image_id, group in pairs:
        if len(held.get(group, ())) > 1:
            split = decided.get(image_id, EXCLUDED)
            divided[image_id] = f"{group}/{split}"
            kept[divided[image_id]] = split
    return regroup(labels, divided), kept


def image_ids(items: pa.Table, split: str) -> list[str]:
    """The items of one split, sorted."""
    pairs = zip(items["image_id"].to_pylist(), items["split"].to_pylist(), strict=True)
    return sorted(image_id for image_id, found in pairs if found == split)


def store_manifest(
    store: Store,
    items: pa.Table,
    *,
    label_set_id: str,
    class_map_sha256: str,
    salt: str,
    shares: Mapping[str, float],
    leakage: Mapping[str, int] | None = None,
) -> SplitManifest:
    """Make manifest and items exist in the output (nothing changes if they do already).

    Args:
        items: ``split_items.v2``, labelled and unlabelled items together.
    """
    items = items.sort_by("image_id")
    manifest = SplitManifest(
        label_set_id=label_set_id,
        class_map_sha256=class_map_sha256,
        salt=salt,
        shares=dict(shares),
        items_sha256=content_digest(items),
        counts=dict(sorted(Counter(items["split"].to_pylist()).items())),
        leakage=dict(sorted((leakage or {}).items())),
    )
    append(store, SPLIT_ITEMS, items)
    store.put_if_absent(f"{SPLITS_FOLDER}{manifest.manifest_sha256}.json", canonical_json(manifest.to_json()))
    return manifest


def concat_items(parts: Sequence[pa.Table]) -> pa.Table:
    """Labelled and unlabelled items in one table. Raises DatasetError when an item stands in two of them."""
    table = pa.concat_tables(parts).sort_by("image_id")
    counts = Counter(table["image_id"].to_pylist())
    doubled = [image_id for image_id, count in counts.items() if count > 1]
    if doubled:
        raise DatasetError(f"{len(doubled)} items are in two splits, e.g. {doubled[0]}")
    return table
