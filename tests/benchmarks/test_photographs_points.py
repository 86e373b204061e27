"""Real pictures for landmark models: how they are divided, and what a mean pose is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs_points import divided, mean_pose, table

PERSONS, CROPS = 40, 3
NAMES = ["left_shoulder", "right_hip", "neck"]
POSE = np.array([[0.2, 0.1], [0.8, 0.9], [0.5, 0.0]])  # in the box


def write_set(data: Path, turned: Callable[[int], float] = lambda person: 0.0) -> None:
    """Crops of persons who all have the same pose, each in a box of its own; the neck is off by ``turned`` boxes."""
    folder = data / "lsp_pose"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(PERSONS * CROPS):
        person = number // CROPS
        name, box = f"images/{number:03d}.png", (5.0 + person, 3.0, 40.0 + number, 50.0)
        Image.new("L", (256, 64)).save(folder / name)
        pose = POSE + np.array([[0, 0], [0, 0], [turned(person), 0]])
        points = np.concatenate([pose * box[2:] + box[:2] - 0.5, np.full((3, 1), 2)], 1)  # COCO counts from centres
        images.append({"id": number, "file_name": name, "width": 256, "height": 64, "group": f"p{person}"})
        annotations.append(
            {
                "id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": list(box),
                "area": box[2] * box[3], "keypoints": points.ravel().tolist(), "num_keypoints": 3,
            }
        )  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": NAMES, "skeleton": []}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(whole))


def groups_of(file: Path) -> set[str]:
    return {each["group"] for each in json.loads(file.read_text())["images"]}


def test_no_person_is_on_both_sides_and_smaller_shares_are_parts_of_larger_ones(tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    halves, judged_too = divided(tmp_path / "data", "lsp_pose", 2, 0.5, tmp_path / "work")
    learnt, judged = divided(tmp_path / "data", "lsp_pose", 2, 1.0, tmp_path / "work")
    assert groups_of(learnt) | groups_of(judged) == {f"p{k}" for k in range(PERSONS)}
    assert not groups_of(learnt) & groups_of(judged) and groups_of(judged) == groups_of(judged_too)
    assert groups_of(halves) < groups_of(learnt) and 0.25 < len(groups_of(halves)) / len(groups_of(learnt)) < 0.75
    assert all((learnt.parent / each["file_name"]).exists() for each in json.loads(learnt.read_text())["images"])


def test_a_mean_pose_is_right_where_all_have_the_same_and_off_by_what_they_differ(tmp_path: Path) -> None:
    write_set(tmp_path / "same")
    same = mean_pose(*divided(tmp_path / "same", "lsp_pose", 0, 1.0, tmp_path / "a"))
    assert same["length"] == "torso" and same["figures"]["nme"] == pytest.approx(0.0, abs=1e-4)
    assert same["figures"]["pck"] == 1.0
    write_set(tmp_path / "turned", turned=lambda person: 0.5 if person % 2 else -0.5)
    turned = mean_pose(*divided(tmp_path / "turned", "lsp_pose", 0, 1.0, tmp_path / "b"))
    assert turned["figures"]["nme"] > 0.1 and turned["figures"]["pck"] == pytest.approx(2 / 3)
    assert "| lsp_pose |" in table([turned]) and "| mean pose | 0 | 0 | torso | " in table([turned])
