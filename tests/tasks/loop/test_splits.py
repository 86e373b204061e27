"""Splits: by group, in proportion, the same for every order of listing, and for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DatasetError, UsageError
from infra.store import open_store
from tasks.labels.folds import fold_groups
from tasks.loop import splits
from tasks.loop.schemas import FINGERPRINTS, SPLIT_ITEMS
from tasks.loop.splits import DEFAULT_SHARES, group_by, join_near_duplicates, split_groups
from tasks.output.tables import read, table_of
from tests.tasks.loop.scenes import label_set

GROUPS = st.lists(
    st.tuples(st.integers(1, 4), st.sets(st.sampled_from([1, 2, 3]), max_size=3)), min_size=4, max_size=30
)


def named(groups: list[tuple[int, set[int]]]) -> list[tuple[str, int, list[int]]]:
    return [(f"g{k}", count, sorted(classes)) for k, (count, classes) in enumerate(groups)]


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.randoms())
def test_the_order_of_listing_changes_nothing_and_no_group_is_divided(groups, random) -> None:  # type: ignore[no-untyped-def]
    listed = named(groups)
    chosen = split_groups(label_set(listed), DEFAULT_SHARES, salt="s")
    assert set(chosen) == {name for name, _, _ in listed}
    random.shuffle(listed)
    assert split_groups(label_set(listed), DEFAULT_SHARES, salt="s") == chosen


@settings(max_examples=40, deadline=None)
@given(GROUPS, GROUPS)
def test_what_was_decided_stays_when_labels_are_added(groups, more) -> None:  # type: ignore[no-untyped-def]
    before = split_groups(label_set(named(groups)), DEFAULT_SHARES, salt="s")
    grown = [*named(groups), *((f"new{k}", count, sorted(classes)) for k, (count, classes) in enumerate(more))]
    after = split_groups(label_set(grown), DEFAULT_SHARES, salt="s", previous=before)
    assert {group: after[group] for group in before} == before


@settings(max_examples=40, deadline=None)
@given(GROUPS)
def test_every_split_is_within_one_group_of_its_share(groups) -> None:  # type: ignore[no-untyped-def]
    labels = label_set(named(groups))
    chosen = split_groups(labels, DEFAULT_SHARES, salt="s")
    items = Counter(chosen[group] for group in labels.table["group_id"].to_pylist())
    for split, share in DEFAULT_SHARES.items():
        assert abs(items[split] - share * len(labels)) <= 4 * 3  # the largest group, once per other split


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.integers(2, 4), st.randoms())
def test_folds_hold_every_item_once_whole_groups_and_the_same_for_every_order(groups, folds, random) -> None:  # type: ignore[no-untyped-def]
    listed = named(groups)
    labels = label_set(listed)
    parts = fold_groups(labels, folds, salt="s")
    ids, of_group = labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist()
    assert sorted(image_id for part in parts for image_id in part) == sorted(ids)
    owner = {image_id: k for k, part in enumerate(parts) for image_id in part}
    assert all(len({owner[i] for i, g in zip(ids, of_group, strict=True) if g == name}) == 1 for name in of_group)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4, "the largest group"
    random.shuffle(listed)
    assert fold_groups(label_set(listed), folds, salt="s") == parts
    with pytest.raises(DatasetError, match="cannot be divided into"):
        fold_groups(labels, len(groups) + 1, salt="s")


def test_a_rare_class_reaches_calibration_gate_and_test() -> None:
    groups = [(f"common{k}", 1, [1]) for k in range(200)] + [(f"rare{k}", 1, [1, 3]) for k in range(20)]
    for salt in ("a", "b", "c"):
        chosen = split_groups(label_set(groups), DEFAULT_SHARES, salt=salt)
        rare = Counter(chosen[name] for name, _, classes in groups if 3 in classes)
        assert rare == {"train": 10, "calibration": 4, "gate": 3, "test": 3}


def test_another_salt_is_another_division() -> None:
    labels = label_set([(f"g{k}", 1, [1]) for k in range(40)])
    assert split_groups(labels, DEFAULT_SHARES, salt="a") != split_groups(labels, DEFAULT_SHARES, salt="b")


def test_shares_must_sum_to_one_and_every_split_needs_a_group() -> None:
    labels = label_set([("a", 5, [1]), ("b", 5, [1])])
    with pytest.raises(UsageError):
        split_groups(labels, {"train": 0.5, "calibration": 0.2}, salt="s")
    with pytest.raises(UsageError):
        split_groups(labels, {"train": 0.5, "val": 0.5}, salt="s")
    with pytest.raises(DatasetError, match="2 groups"):
        split_groups(labels, DEFAULT_SHARES, salt="s")


def test_groups_by_folder_and_by_pattern() -> None:
    labels = label_set([("cam1", 2, [1]), ("cam2", 1, [1])])
    assert group_by(labels, "folder").table["group_id"].to_pylist() == ["s3://b/cam1", "s3://b/cam1", "s3://b/cam2"]
    assert group_by(labels, r"/(cam\d)/").table["group_id"].to_pylist() == ["cam1", "cam1", "cam2"]
    with pytest.raises(UsageError):
        group_by(labels, "(")


def test_near_duplicates_are_one_group() -> None:
    labels = label_set([("a", 1, [1]), ("b", 1, [1]), ("c", 1, [1]), ("d", 1, [1])])
    prints = [("a", "x1", 0b1111), ("b", "x2", 0b1100), ("c", "x1", -1), ("d", "x3", None)]
    fingerprints = table_of(
        FINGERPRINTS,
        [
            {"image_id": f"s3://b/{n}/000.png", "uri": n, "group_id": n, "etag": "e", "sha256": digest, "phash64": bits}
            for n, digest, bits in prints
        ],
    )
    assert join_near_duplicates(labels, fingerprints).table["group_id"].to_pylist() == ["a", "a", "a", "d"]


def test_a_new_item_between_two_splits_is_excluded_and_the_old_ones_stay() -> None:
    before = label_set([("a", 1, [1]), ("b", 1, [1]), ("c", 1, [1])])
    items = splits.labelled_rows(before, {"a": "train", "b": "gate", "c": "test"}, None)
    grown = label_set([("a", 1, [1]), ("b", 1, [1]), ("c", 1, [1]), ("d", 1, [1]), ("e", 1, [1])])
    joined = splits.regroup(
        grown, {"s3://b/b/000.png": "a", "s3://b/d/000.png": "a", "s3://b/e/000.png": "aa", "s3://b/c/000.png": "aa"}
    )
    labels, kept = splits.keep_previous(joined, items)
    chosen = split_groups(labels, DEFAULT_SHARES, salt="s", previous=kept)
    rows = {row["uri"][7]: row for row in splits.labelled_rows(labels, chosen, None).to_pylist()}
    assert {name: row["split"] for name, row in rows.items()} == {
        "a": "train", "b": "gate", "c": "test", "d": "excluded", "e": "test",
    }  # fmt: skip
    assert rows["d"]["reason"] == "straddles"


def test_the_manifest_is_named_by_what_it_says(store_uri: str) -> None:
    store = open_store(store_uri)
    labels = label_set([(f"g{k}", 2, [1 + k % 3]) for k in range(12)])
    chosen = split_groups(labels, DEFAULT_SHARES, salt="s")
    items = splits.labelled_rows(labels, chosen, None)
    facts = {"label_set_id": labels.label_set_id, "class_map_sha256": "c", "salt": "s", "shares": DEFAULT_SHARES}
    manifest = splits.store_manifest(store, items, **facts)  # type: ignore[arg-type]
    again = splits.store_manifest(store, items.sort_by([("image_id", "descending")]), **facts)  # type: ignore[arg-type]
    assert manifest == again and sum(manifest.counts.values()) == len(labels)
    assert read(store, SPLIT_ITEMS).sort_by("image_id").equals(items.sort_by("image_id"))
    again_labels, kept = splits.keep_previous(labels, items)
    assert kept == chosen and again_labels.table.equals(labels.table)
    other = splits.store_manifest(store, items, **{**facts, "salt": "t"})  # type: ignore[arg-type]
    assert other.manifest_sha256 != manifest.manifest_sha256
    with pytest.raises(DatasetError, match="two splits"):
        splits.concat_items([items, items.slice(0, 1)])
