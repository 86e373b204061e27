"""Nothing of calibration, gate and test reaches the unlabelled set, whatever it is called or encoded as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tasks.loop.fingerprints import fingerprints_of, hamming, phash64
from tasks.loop.firewall import firewall
from tasks.loop.near import near_pairs
from tasks.loop.schemas import SPLIT_ITEMS
from tasks.output.tables import table_of
from tasks.records import Entry
from tests.tasks.loop.scenes import picture, write
from tests.videos import make_video
from tests.videos import picture as video_picture


def entry(uri: str, media: str = "image") -> Entry:
    return Entry(
        uri=uri,
        etag=f"unknown:{Path(uri).stat().st_size}" if Path(uri).exists() else "missing:",
        size_bytes=0,
        media=media,
    )  # type: ignore[arg-type]


def labelled(prints: pa.Table, split: str) -> pa.Table:
    columns = ("image_id", "uri", "group_id", "sha256", "phash64")
    return table_of(SPLIT_ITEMS, [{**{c: row[c] for c in columns}, "split": split} for row in prints.to_pylist()])


def outcome(report: pa.Table) -> dict[str, tuple[str, str | None, str | None]]:
    return {Path(row["uri"]).name: (row["split"], row["reason"], row["touches_split"]) for row in report.to_pylist()}


@pytest.mark.parametrize("split", ["calibration", "gate", "test"])
def test_identical_re_encoded_resized_and_next_frame_copies_are_kept_out(tmp_path: Path, split: str) -> None:
    original = picture(1)
    gate = write(tmp_path / "gate", "frame_007.png", original)
    u = tmp_path / "u"
    copies = [
        write(u, "same.png", original),
        write(u, "smaller_file.jpg", original, "JPEG", quality=60),
        write(u, "half.png", np.asarray(Image.fromarray(original).resize((64, 48), Image.Resampling.LANCZOS))),
        write(u, "brighter.png", np.clip(original.astype(int) + 12, 0, 255).astype(np.uint8)),
        write(u, "frame_008.png", picture(2)),  # another picture of the same scene: only its group tells
        write(u, "stranger.png", picture(3)),
    ]
    prints = fingerprints_of([entry(gate)], groups={gate: "scene"})
    found = firewall(fingerprints_of(map(entry, copies), groups={copies[4]: "scene"}), labelled(prints, split))
    assert outcome(found.items) == {
        "same.png": ("excluded", "sha256", split),
        "smaller_file.jpg": ("excluded", "phash64", split),
        "half.png": ("excluded", "phash64", split),
        "brighter.png": ("excluded", "phash64", split),
        "frame_008.png": ("excluded", "group", split),
        "stranger.png": ("unlabelled", None, None),
    }
    assert found.counts == {f"group vs {split}": 1, f"phash64 vs {split}": 3, f"sha256 vs {split}": 1}


def test_against_training_labels_only_duplicates_are_dropped(tmp_path: Path) -> None:
    train = write(tmp_path / "l", "frame_001.png", picture(1))
    u = [
        write(tmp_path / "u", "copy.jpg", picture(1), "JPEG", quality=80),
        write(tmp_path / "u", "frame_002.png", picture(2)),
    ]
    prints = fingerprints_of([entry(train)], groups={train: "clip"})
    found = firewall(fingerprints_of(map(entry, u), groups=dict.fromkeys(u, "clip")), labelled(prints, "train"))
    assert outcome(found.items) == {
        "copy.jpg": ("excluded", "phash64", "train"),
        "frame_002.png": ("unlabelled", None, None),
    }


def test_an_item_near_to_several_splits_is_reported_against_the_gravest(tmp_path: Path) -> None:
    prints = fingerprints_of([entry(write(tmp_path, "a.png", picture(1)))])
    copies = [
        labelled(prints, split).to_pylist()[0] | {"image_id": split}
        for split in ("train", "calibration", "gate", "test")
    ]
    known = table_of(SPLIT_ITEMS, copies)
    assert firewall(prints, known).counts == {"group vs test": 1}


def test_what_cannot_be_read_stays_out(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    prints = fingerprints_of(
        [entry(str(broken)), entry(str(tmp_path / "gone.png")), entry(write(tmp_path, "ok.png", picture(1)))]
    )
    found = firewall(prints, labelled(prints.slice(0, 0), "gate"))
    assert found.counts == {"unreadable vs any": 2} and outcome(found.items)["ok.png"][0] == "unlabelled"


def test_pictures_without_structure_have_no_perceptual_hash() -> None:
    rng = np.random.default_rng(0)
    assert phash64(np.full((64, 64, 3), 200, np.uint8)) is None
    assert phash64((200 + rng.integers(-2, 3, (640, 640, 3))).astype(np.uint8)) is None


def test_unrelated_pictures_are_far_apart() -> None:
    hashes = np.array([phash64(picture(seed)) for seed in range(60)], np.int64)
    distances = hamming(hashes[:, None], hashes[None])[np.triu_indices(60, 1)]
    assert distances.min() > 6 and 28 < distances.mean() < 36


def test_a_video_with_a_frame_of_the_gate_is_kept_out_whole(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(make_video("mp4", "mpeg4", frames=3))
    gate = write(tmp_path, "still.png", video_picture(1))
    prints = fingerprints_of([entry(str(video), "video")], frame_stride=1)
    assert prints.num_rows == 3
    found = firewall(prints, labelled(fingerprints_of([entry(gate)]), "gate"))
    assert found.items["split"].to_pylist() == ["excluded"] * 3


def test_near_pairs_are_exactly_those_of_comparing_all() -> None:
    rng = np.random.default_rng(4)
    left = rng.integers(-(2**63), 2**63 - 1, 400, dtype=np.int64)
    flips = [np.bitwise_xor.reduce(np.int64(1) << rng.choice(63, n, replace=False)) for n in rng.integers(0, 12, 300)]
    right = left[:300] ^ np.array(flips, np.int64)
    expected = [(i, j, d) for i in range(400) for j, d in enumerate(hamming(left[i : i + 1], right).tolist()) if d <= 6]
    assert near_pairs(left, right, 6).tolist() == [list(pair) for pair in expected] and len(expected) > 100
