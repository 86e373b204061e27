"""From labels and a bucket to a division that holds: the whole first step of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.store import open_store
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.loop.data import LoopData, prepare_data
from tasks.loop.fingerprints import entries_of
from tasks.loop.splits import image_ids, same_gate
from tasks.output.entries import INVENTORY_SCHEMA, Row, batches_of, unknown_etag
from tasks.records import Entry
from tests.tasks.loop.scenes import CLASSES, encoded, picture, rectangle, write

SHARES = {"train": 0.4, "calibration": 0.2, "gate": 0.2, "test": 0.2}


def labelled(folder: Path, seeds: range, size_hw: tuple[int, int] = (96, 128)) -> LabelSet:
    items = [
        LabelledItem(
            write(folder, f"{seed:02d}.png", picture(seed)),
            size_hw,
            (LabelledObject(1, rectangle(0, 0, 9, 9, size_hw)),),
        )
        for seed in seeds
    ]
    return make_label_set(items, CLASSES, origin_format="test")


def entry(uri: str) -> Entry:
    return Entry(uri=uri, etag=unknown_etag(0), size_bytes=0, media="image")


def prepared(tmp_path: Path, labels: LabelSet, unlabelled: list[str], **more: Any) -> LoopData:
    return prepare_data(
        open_store(str(tmp_path / "out")), labels, map(entry, unlabelled), shares=SHARES, salt="s", **more
    )


def test_labels_and_a_bucket_become_a_division_that_never_mixes(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "l", range(10))
    copies = [write(tmp_path / "u", f"copy{k:02d}.jpg", picture(k), "JPEG", quality=70) for k in range(10)]
    fresh = [write(tmp_path / "u", f"fresh{k}.png", picture(100 + k)) for k in range(4)]
    of_labels = labels.table["uri"].to_pylist()
    found = prepared(tmp_path, labels, [*copies, *fresh, *of_labels])
    near = {"calibration": 2, "gate": 2, "train": 4, "test": 2}
    assert found.manifest.counts == {**near, "unlabelled": 4, "excluded": 10}
    assert found.manifest.leakage == {f"phash64 vs {split}": count for split, count in near.items()}
    assert image_ids(found.items, "unlabelled") == sorted(fresh)
    parts = [set(found.split(name).table["image_id"].to_pylist()) for name in SHARES]
    assert sum(map(len, parts)) == 10 == len(set().union(*parts))
    again = prepared(tmp_path, labels, list(reversed([*copies, *fresh])))
    assert again.manifest == found.manifest


def test_near_duplicates_among_the_labels_stay_together(tmp_path: Path) -> None:
    uris = [write(tmp_path / "l", f"{seed:02d}.png", picture(seed)) for seed in range(8)]
    uris += [write(tmp_path / "l", f"twin{seed:02d}.jpg", picture(seed), "JPEG", quality=75) for seed in range(8)]
    labels = make_label_set([LabelledItem(uri, (96, 128)) for uri in uris], CLASSES, origin_format="test")
    found = prepared(tmp_path, labels, [])
    split = {Path(row["uri"]).stem: row["split"] for row in found.items.to_pylist()}
    assert all(split[f"{seed:02d}"] == split[f"twin{seed:02d}"] for seed in range(8))


def test_poisoned_annotations_beside_the_unlabelled_change_nothing(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "l", range(8))
    fresh = [write(tmp_path / "u", f"fresh{k}.png", picture(100 + k)) for k in range(4)]
    before = prepared(tmp_path, labels, fresh)
    (tmp_path / "u" / "annotations.json").write_text('{"images": [], "annotations": "poison"}')
    assert prepared(tmp_path, labels, fresh).manifest == before.manifest


def test_the_division_grows_and_never_moves_what_was_decided(tmp_path: Path) -> None:
    before = prepared(tmp_path, labelled(tmp_path / "l", range(10)), [])
    after = prepared(tmp_path, labelled(tmp_path / "l", range(16)), [], previous=before.items)
    old = {row["image_id"]: row["split"] for row in before.items.to_pylist()}
    new = {row["image_id"]: row["split"] for row in after.items.to_pylist()}
    assert {image_id: new[image_id] for image_id in old} == old and len(new) == 16
    assert after.manifest.manifest_sha256 != before.manifest.manifest_sha256
    for found, count in ((before, 10), (after, 16)):
        again = prepared(tmp_path, labelled(tmp_path / "l", range(count)), [], previous=found.items)
        assert again.manifest == found.manifest, "divided once more it is the same division: a stopped loop goes on"


def test_looks_at_a_gate_set_add_up_whatever_the_division_is_called_until_half_of_it_is_new(tmp_path: Path) -> None:
    store, labels = open_store(str(tmp_path / "out")), labelled(tmp_path / "l", range(10))
    first = prepared(tmp_path, labels, [])
    fresh = [write(tmp_path / "u", "fresh.png", picture(100))]
    other = {"train": 0.6, "calibration": 0.2, "gate": 0.2}
    again = prepare_data(store, labels, map(entry, fresh), shares=other, salt="t", previous=first.items)
    names = {each.manifest.manifest_sha256 for each in (first, again)}
    assert len(names) == 2, "another seed, other shares and another unlabelled image have another name"
    assert same_gate(store, again.items, again.manifest) == names, "and the same gate set"
    more = prepared(tmp_path, labelled(tmp_path / "l", range(40)), [], previous=again.items)
    assert same_gate(store, more.items, more.manifest) == {more.manifest.manifest_sha256}


def test_entries_come_from_an_inventory(tmp_path: Path) -> None:
    rows = [Row("/a.png", "e1", 3, "image"), Row("/b.png", "e2", 4, "image", problem="the tar is cut off")]
    with pq.ParquetWriter(tmp_path / "inventory.parquet", INVENTORY_SCHEMA) as writer:
        for batch in batches_of(rows):
            writer.write_batch(batch)
    found = list(entries_of(tmp_path / "inventory.parquet"))
    assert [(each.uri, each.etag, each.problem) for each in found] == [
        ("/a.png", "e1", None), ("/b.png", "e2", "the tar is cut off"),
    ]  # fmt: skip


@pytest.mark.s3
def test_everything_may_lie_in_a_bucket(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    items = []
    for seed in range(6):
        store.put(f"l/{seed}.png", encoded(picture(seed)))
        store.put(f"u/{seed}.png", encoded(np.roll(picture(50 + seed), 3, axis=1)))
        items.append(LabelledItem(f"{s3_bucket}/l/{seed}.png", (96, 128)))
    store.put("u/copy.png", encoded(picture(0)))
    labels = make_label_set(items, CLASSES, origin_format="test")
    unlabelled = [entry(store.uri_of(info.key)) for info in store.list("u/")]
    found = prepare_data(store, labels, unlabelled, shares=SHARES, salt="s")
    assert found.manifest.counts["unlabelled"] == 6 and found.manifest.counts["excluded"] == 1
