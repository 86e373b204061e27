"""A label set in parts: whole groups, in an order in which neighbours are alike."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

from infra.errors import DatasetError
from tasks.labels.label_sets import LabelSet


def fold_groups(labels: LabelSet, folds: int, *, salt: str) -> list[list[str]]:
    """The items in parts of about the same size and mix of classes, by group.

    Args:
        labels: groups are taken as they stand.
        folds: number of parts.
        salt: another salt, other parts.

    Returns:
        Image ids of each part, sorted.

    Raises:
        DatasetError: fewer groups than parts.
    """
    pairs = zip(labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist(), strict=True)
    items: dict[str, list[str]] = defaultdict(list)
    for image_id, group in pairs:
        items[group].append(image_id)
    if len(items) < folds:
        raise DatasetError(f"{len(items)} groups cannot be divided into {folds} parts", hint="Label more groups.")
    parts: list[list[str]] = [[] for _ in range(folds)]
    for group in in_line(labels, {group: len(ids) for group, ids in items.items()}, salt):
        min(parts, key=len).extend(items[group])
    return [sorted(part) for part in parts]


def in_line(labels: LabelSet, sizes: Mapping[str, int], salt: str) -> list[str]:
    """Groups by their rarest class (the rarest first), then by salted hash."""
    items_with: Counter[int] = Counter()
    of_group: dict[str, set[int]] = defaultdict(set)
    for group, found in zip(labels.table["group_id"].to_pylist(), labels.table["labels"].to_pylist(), strict=True):
        items_with.update(set(found))
        of_group[group].update(found)
    rank = {
        label: place for place, label in enumerate(sorted(items_with, key=lambda label: (items_with[label], label)))
    }
    last = len(rank)

    def place(group: str) -> tuple[int, str]:
        return min((rank[label] for label in of_group[group]), default=last), _salted(salt, group)

    return sorted(sizes, key=place)


def _salted(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()
