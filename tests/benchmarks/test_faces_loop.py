"""Persons of the experiment with faces: nobody is on two sides, and other ones are sealed in each division."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.faces_loop import DIVISIONS, PERSON, divided, persons_of


def test_a_person_is_of_one_part_and_is_sealed_once(tmp_path: Path) -> None:
    data = tmp_path / "faces"
    (data / "images").mkdir(parents=True)
    images = []
    for k in range(120):
        name = f"images/p{k // 2:03d}_{k % 2:02d}.jpg"
        (data / name).touch()
        images.append({"id": k, "file_name": name, "group": f"p{k // 2:03d}"})
    annotations = [{"id": k, "image_id": k} for k in range(120)]
    (data / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    sealed = []
    for division in range(DIVISIONS):
        parts = divided(data, division, tmp_path / f"{division}")
        taught, labelled, unlabelled, kept = (
            persons_of(parts[name]) for name in ("train", "labelled", "unlabelled", "sealed")
        )
        assert taught < labelled and not labelled & unlabelled and not (labelled | unlabelled) & kept
        assert [len(each) for each in (taught, labelled, unlabelled, kept)] == [5, 10, 38, 12]
        content = json.loads(parts["unlabelled"].read_text())
        assert len(content["annotations"]) == len(content["images"]) == 76
        image = parts["unlabelled"].parent / content["images"][0]["file_name"]
        found = re.search(PERSON, str(image))
        assert image.is_file() and not image.is_symlink(), "a job takes no link that leads out of its source"
        assert found is not None and found[1] == content["images"][0]["group"]
        sealed += sorted(kept)
    assert len(sealed) == len(set(sealed)) == 60
