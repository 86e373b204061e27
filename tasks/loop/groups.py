"""Which labelled items may not be divided between splits, and which unlabelled ones go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from tasks.labels.label_sets import LabelSet, regroup
from tasks.loop.near import Clusters
from tasks.loop.sequences import Picture, find_sequences
from tasks.loop.splits import AUTO, ITEM, group_by, join_near_duplicates, names_by


def grouped(
    labels: LabelSet, prints: pa.Table, rule: str = AUTO, others: pa.Table | None = None
) -> tuple[LabelSet, dict[str, str]]:
    """The label set with its final groups, and whom others go with.

    Args:
        labels: with the groups that their files name: videos, scenes; these stand.
        prints: ``fingerprints.v1`` of their items.
        rule: "auto" also finds sequences (``tasks.loop.sequences``); else see :func:`tasks.loop.splits.group_by`. Near-
            duplicates are joined whatever the rule.
        others: ``fingerprints.v1`` of unlabelled items.

    Returns:
        The labels, and image id of an other one -> that of a labelled one whose group it is of.
    """
    labels = group_by(labels, rule)
    next_to: dict[str, str] = {}
    if rule == AUTO:
        names = set(labels.table["image_id"].to_pylist())
        mine = (row for row in prints.to_pylist() if row["image_id"] in names)
        found = find_sequences(_pictures(mine), _pictures([] if others is None else others.to_pylist()))
        labels, next_to = _joined(labels, found.together), found.next_to
    elif rule != ITEM and others is not None:
        next_to = _named_alike(labels, others, rule)
    return join_near_duplicates(labels, prints), next_to


def with_groups(others: pa.Table, next_to: Mapping[str, str], group_of: Mapping[str, str]) -> pa.Table:
    """``fingerprints.v1`` of unlabelled items in the groups of the labelled ones that they go with.

    Args:
        others: an item whose group was given keeps it.
        next_to: of :func:`grouped`.
        group_of: image id of a labelled item -> its group.
    """
    columns = zip(*(others[name].to_pylist() for name in ("image_id", "uri", "group_id")), strict=True)
    names = [
        group_of[next_to[image_id]] if image_id in next_to and group == uri else group
        for image_id, uri, group in columns
    ]
    place = others.schema.get_field_index("group_id")
    return others.set_column(place, others.schema.field(place), pa.array(names, pa.string()))


def _pictures(rows: Iterable[Mapping[str, object]]) -> Iterator[Picture]:
    """Images; frames of videos have their group."""
    for row in rows:
        if row["image_id"] == row["uri"]:
            phash64 = row["phash64"]
            yield Picture.of(str(row["image_id"]), str(row["uri"]), phash64 if isinstance(phash64, int) else None)


def _joined(labels: LabelSet, together: Sequence[Sequence[str]]) -> LabelSet:
    """Items that are together in one group, except those of which the labels name a group."""
    pairs = zip(labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist(), strict=True)
    alone = sorted(image_id for image_id, group in pairs if group == image_id)
    place = {image_id: k for k, image_id in enumerate(alone)}
    clusters = Clusters(len(alone))
    for members in together:
        known = [place[image_id] for image_id in members if image_id in place]
        for one in known[1:]:
            clusters.join(known[0], one)
    return regroup(labels, {image_id: alone[clusters.find(k)] for image_id, k in place.items()})


def _named_alike(labels: LabelSet, others: pa.Table, rule: str) -> dict[str, str]:
    """Others whose names are of a labelled item's group by the rule.

    Files in two places may be called the same: a name that one labelled and one other item have is no group.
    """
    mine, theirs = (names_by(rule, table["uri"].to_pylist()) for table in (labels.table, others))
    labelled, unlabelled = Counter(mine), Counter(theirs)
    first = dict(zip(reversed(mine), reversed(labels.table["image_id"].to_pylist()), strict=True))
    return {
        image_id: first[name]
        for image_id, name in zip(others["image_id"].to_pylist(), theirs, strict=True)
        if name in first and max(labelled[name], unlabelled[name]) > 1
    }
