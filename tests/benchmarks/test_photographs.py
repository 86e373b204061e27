"""Divisions of real pictures: nothing is judged that was learnt from, and labels stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs_data import divided, divided_for_loop

SEQUENCES = ("0006R0", "0001TP", "0016E5")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen frames of each of CamVid's three sequences, larger than the experiment with the loop takes them."""
    folder = tmp_path / "camvid_train"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.json").write_text("{}")
    for sequence in SEQUENCES:
        for frame in range(16):
            Image.new("RGB", (480, 360), (frame, 0, 0)).save(folder / "images" / f"{sequence}_{frame:05d}.png")
            Image.fromarray(np.full((360, 480), frame, np.uint8)).save(folder / "masks" / f"{sequence}_{frame:05d}.png")
    return tmp_path


def stems(part: Path) -> list[str]:
    return sorted(path.stem for path in (part / "images").iterdir())


def test_a_sequence_that_is_judged_is_not_learnt_from(data: Path, tmp_path: Path) -> None:
    learnt, judged = divided(data, "camvid", 0, tmp_path / "work")
    assert {stem.split("_")[0] for stem in stems(judged)} == {"0006R0"} and len(stems(learnt)) == 32
    assert (learnt / "classes.json").exists() and stems(learnt) == sorted(p.stem for p in (learnt / "masks").iterdir())


def test_each_division_labels_a_piece_of_each_sequence_and_keeps_another_one_for_the_test(
    data: Path, tmp_path: Path
) -> None:
    kept = []
    for division in range(3):
        labelled, unlabelled, judged = divided_for_loop(data, "camvid", division, tmp_path / "work")
        assert sorted(stems(labelled) + stems(unlabelled) + stems(judged)) == sorted(
            f"{sequence}_{frame:05d}" for sequence in SEQUENCES for frame in range(16)
        )
        first, second = stems(labelled)[:2], stems(labelled)[2:]
        assert [int(b[-5:]) - int(a[-5:]) for a, b in (first, second)] == [1, 1], "frames that follow each other"
        kept.append({stem.split("_")[0] for stem in stems(judged)})
        mask = np.asarray(Image.open(labelled / "masks" / f"{first[0]}.png"))
        assert mask.shape == (240, 320) and set(np.unique(mask)) == {int(first[0][-5:])}
    assert kept == [{name} for name in SEQUENCES]


def test_labels_of_one_sequence_are_as_many_and_leave_the_other_to_the_loop(data: Path, tmp_path: Path) -> None:
    for division, sequence in enumerate(("0016E5", "0016E5", "0006R0")):
        several = divided_for_loop(data, "camvid", division, tmp_path / "work")[0]
        labelled, unlabelled, judged = divided_for_loop(data, "camvid", division, tmp_path / "work", one_group=True)
        assert {stem.split("_")[0] for stem in stems(labelled)} == {sequence}
        assert len(stems(labelled)) == len(stems(several)) == 4
        left = {stem.split("_")[0] for stem in stems(unlabelled)}
        assert left == set(SEQUENCES) - {stem.split("_")[0] for stem in stems(judged)} and len(left) == 2
