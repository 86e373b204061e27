"""The data of a loop, decided before anything is trained: who is in which split, kept in one manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from infra.store import Store
from tasks.labels.label_sets import LabelSet, class_map_sha256
from tasks.loop.fingerprints import fingerprints_of
from tasks.loop.firewall import firewall
from tasks.loop.groups import grouped, with_groups
from tasks.loop.splits import (
    AUTO,
    SplitManifest,
    concat_items,
    image_ids,
    keep_previous,
    labelled_rows,
    split_groups,
    store_manifest,
)
from tasks.output.entries import unknown_etag
from tasks.records import Entry, Media


@dataclass(frozen=True, slots=True)
class LoopData:
    """What the loop works on.

    Args:
        labels: all human labels, with their groups as they were divided.
        items: ``split_items.v2`` of all items.
        manifest: stored; its digest names the division.
    """

    labels: LabelSet
    items: pa.Table
    manifest: SplitManifest

    def split(self, name: str) -> LabelSet:
        """The labels of one split. Empty splits raise nothing: they have no rows."""
        return self.labels.only(image_ids(self.items, name))


@dataclass(frozen=True, slots=True)
class Division:
    """The labels divided.

    Args:
        labels: with the groups that they were divided by.
        known: ``split_items.v2`` of them.
        next_to: image id of an unlabelled item -> that of a labelled one whose group it is of.
    """

    labels: LabelSet
    known: pa.Table
    next_to: dict[str, str]

    def split(self, name: str) -> LabelSet:
        """The labels of one split."""
        return self.labels.only(image_ids(self.known, name))


def divide_labels(
    labels: LabelSet,
    others: pa.Table,
    *,
    shares: Mapping[str, float],
    salt: str,
    group_rule: str = AUTO,
    previous: pa.Table | None = None,
) -> Division:
    """Divide labels by group; near-duplicates stay together. Opens the labelled images, and writes nothing.

    Args:
        labels: all human labels.
        others: ``fingerprints.v1`` of unlabelled items; only those whose names are like a labelled one's matter.
        shares, salt, group_rule, previous: see :func:`prepare_data`.
    """
    prints = fingerprints_of(_labelled_entries(labels), frame_stride=1)
    labels, next_to = grouped(labels, prints, group_rule, others)
    kept: dict[str, str] = {}
    if previous is not None:
        labels, kept = keep_previous(labels, previous)
    chosen = split_groups(labels, shares, salt=salt, previous=kept)
    return Division(labels, labelled_rows(labels, chosen, prints), next_to)


def prepare_data(
    store: Store,
    labels: LabelSet,
    unlabelled: Iterable[Entry],
    *,
    shares: Mapping[str, float],
    salt: str,
    group_rule: str = AUTO,
    unlabelled_groups: Mapping[str, str] | None = None,
    previous: pa.Table | None = None,
    frame_stride: int = 30,
) -> LoopData:
    """Divide labels by group, keep near-duplicates together, and unlabelled items clear of what judges and calibrates.

    Args:
        store: the loop's output; manifest and items are made to exist in it.
        labels: all human labels.
        unlabelled: the objects of the unlabelled source; their annotations, if any, are never looked for.
        shares: split -> share of the labelled items; a share of "unlabelled" gives labels up, for experiments.
        salt: another salt, another division.
        group_rule: see :func:`tasks.loop.groups.grouped`.
        unlabelled_groups: uri -> group of unlabelled objects, where known.
        previous: ``split_items.v2`` of an earlier manifest, to grow from.
        frame_stride: of unlabelled videos, every how many-th frame is compared.
    """
    mine = set(labels.table["uri"].to_pylist())
    entries = (entry for entry in unlabelled if entry.uri not in mine)  # a source may hold the labelled ones, too
    others = fingerprints_of(entries, groups=unlabelled_groups, frame_stride=frame_stride)
    found = divide_labels(labels, others, shares=shares, salt=salt, group_rule=group_rule, previous=previous)
    labels, known = found.labels, found.known
    group_of = dict(zip(known["image_id"].to_pylist(), known["group_id"].to_pylist(), strict=True))
    walled = firewall(with_groups(others, found.next_to, group_of), known)
    items = concat_items([known, walled.items])
    manifest = store_manifest(
        store,
        items,
        label_set_id=labels.label_set_id,
        class_map_sha256=class_map_sha256(labels.classes),
        salt=salt,
        shares=shares,
        leakage=walled.counts,
    )
    return LoopData(labels, items, manifest)


def _labelled_entries(labels: LabelSet) -> list[Entry]:
    media: dict[str, Media] = {}
    for uri, kind in zip(labels.table["uri"].to_pylist(), labels.table["media"].to_pylist(), strict=True):
        media[uri] = "video" if kind == "video" else "image"
    return [Entry(uri=uri, etag=unknown_etag(0), size_bytes=0, media=kind) for uri, kind in sorted(media.items())]
