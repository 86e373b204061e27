"""Frames that lie about as pictures are one group; unrelated pictures that are numbered are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.labels import in_groups
from flows.parameters import TrainParameters
from infra.errors import UsageError
from infra.problems import checked
from infra.store import open_store
from tasks.labels.label_sets import LabelledItem, LabelSet, make_label_set
from tasks.loop.apart import distances
from tasks.loop.data import LoopData, prepare_data
from tasks.loop.fingerprints import phash64
from tasks.loop.sequences import Picture, find_sequences
from tasks.output.entries import unknown_etag
from tasks.records import Entry
from tests.tasks.loop.scenes import CLASSES, picture, write

SHARES = {"train": 0.5, "gate": 0.5}


def frames(folder: Path, name: str, numbers: range, seed: int, stride: int = 8) -> list[str]:
    """A camera that turns: crops of one wide picture, ``stride`` columns apart; a number is its place."""
    wide = picture(seed, (96, 128 + stride * (max(numbers) + 1)))
    return [write(folder, name.format(k), wide[:, stride * k : stride * k + 128]) for k in numbers]


def unrelated(folder: Path, count: int, name: str = "IMG_{:04d}.png") -> list[str]:
    return [write(folder, name.format(k), picture(1000 + k)) for k in range(count)]


def labelled(uris: list[str]) -> LabelSet:
    return make_label_set([LabelledItem(uri, (96, 128)) for uri in uris], CLASSES, origin_format="test")


def groups(labels: LabelSet, **asked: str) -> dict[str, list[str]]:
    parameters = checked(TrainParameters, labelled="l", output="o", **asked)
    table, found = in_groups(labels, parameters).table, {}
    for uri, group in zip(table["uri"].to_pylist(), table["group_id"].to_pylist(), strict=True):
        found.setdefault(group, []).append(Path(uri).name)
    return found


def divided(tmp_path: Path, uris: list[str], others: list[str], **more: str) -> LoopData:
    entries = [Entry(uri=uri, etag=unknown_etag(0), size_bytes=0, media="image") for uri in others]
    return prepare_data(open_store(str(tmp_path / "out")), labelled(uris), entries, shares=SHARES, salt="s", **more)


def test_frames_are_one_group_by_sequence_and_numbered_photographs_are_none(tmp_path: Path) -> None:
    uris = frames(tmp_path, "0006R0_f{:05d}.png", range(0, 60, 3), seed=1)
    uris += frames(tmp_path, "0016E5_{:05d}.png", range(0, 60, 3), seed=2)
    uris += unrelated(tmp_path, 40)
    sizes = sorted(map(len, groups(labelled(uris)).values()))
    assert sizes == [1] * 40 + [20, 20]
    assert max(map(len, groups(labelled(uris), group_rule="item").values())) <= 2, "near-duplicates alone are joined"


def test_a_pattern_of_names_groups_as_it_says(tmp_path: Path) -> None:
    uris = unrelated(tmp_path, 4, "a_{}.png") + unrelated(tmp_path, 4, "b_{}.png")
    found = groups(labelled(uris), group_rule=r"([ab])_\d+\.png$")
    assert [len(each) for each in found.values()] == [8], "copies under two names are near-duplicates all the same"
    with pytest.raises(UsageError, match="group_rule: is neither"):
        groups(labelled(uris), group_rule="(")


def test_a_sequence_ends_where_numbers_jump_and_the_pictures_are_others(tmp_path: Path) -> None:
    uris = frames(tmp_path, "drive_{:05d}.png", range(0, 60, 3), seed=1)
    uris += frames(tmp_path, "drive_1{:04d}.png", range(0, 60, 3), seed=2)
    assert sorted(map(len, groups(labelled(uris)).values())) == [20, 20]


def test_names_without_siblings_are_in_the_order_of_all_their_numbers() -> None:
    wide = picture(1, (96, 128 + 8 * 60))
    clip = [
        Picture.of(name, name, phash64(wide[:, 24 * k : 24 * k + 128]))
        for k in range(20)
        for name in [f"clip/2026-11-29T12-00-{k:02d}.{(k * 7919) % 1000:03d}.png"]
    ]
    [found] = find_sequences(clip).together
    assert found == tuple(each.image_id for each in clip)


def test_groups_that_the_labels_name_stand(tmp_path: Path) -> None:
    uris = frames(tmp_path, "f{:03d}.png", range(0, 60, 3), seed=1)
    items = [LabelledItem(uri, (96, 128), group_id=f"scene{k % 4}") for k, uri in enumerate(uris)]
    assert len(groups(make_label_set(items, CLASSES, origin_format="test"))) == 4


def test_the_rest_of_a_judged_sequence_is_kept_out_of_the_unlabelled_wherever_it_lies(tmp_path: Path) -> None:
    one = frames(tmp_path / "all", "0006R0_f{:05d}.png", range(0, 60, 2), seed=1)
    two = frames(tmp_path / "all", "0016E5_{:05d}.png", range(0, 60, 2), seed=2)
    uris, others = [*one[:9], *two[:9]], []
    for uri in [*one[9:], *two[9:]]:
        (tmp_path / "u").mkdir(exist_ok=True)
        others.append(str(Path(uri).rename(tmp_path / "u" / Path(uri).name)))
    found = divided(tmp_path, uris, others)
    assert (found.manifest.counts["train"], found.manifest.counts["gate"]) == (9, 9)
    assert found.manifest.leakage["group vs gate"] == 21
    assert found.manifest.counts["unlabelled"] >= 20, "the rest of the sequence that trains may be labelled by machines"
    [gap] = distances(found.items)
    assert (gap.one, gap.other, gap.least_steps) == ("train", "gate", None) and gap.least_bits > 6
    named = divided(tmp_path, uris, others, group_rule="(0006R0|0016E5)")
    assert named.manifest.leakage["group vs gate"] == 21, "a pattern of names says so, too"
    by_item = divided(tmp_path, uris, others, group_rule="item")
    [gap] = distances(by_item.items)
    assert gap.least_steps == 1.0, "neighbours in both splits, and it is told"
