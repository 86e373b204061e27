"""The self-training experiment's own arithmetic: who is labelled, what a bound is, and that the note hides nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks import selftraining_data
from benchmarks.selftraining import Setting, keep_record, known_record, parse, settings_of, settings_of_controls
from benchmarks.selftraining_controls import write_on_their_heads
from benchmarks.selftraining_data import Sizes, ensure_labels, recipe_of
from benchmarks.selftraining_notes import lower_bound, summarise
from modelkit import create_model, load
from modelkit.digitscape import Digitscape, write_dataset
from modelkit.training.transfer import adopt
from tasks.training.recipe import TrainingRecipe


def record(split: int, seed: int, gain: float) -> dict[str, Any]:
    return {
        "task": "instance", "split": split, "seed": seed, "steps": 100, "accepted": {"3": 40, "7": 2},
        "audit": {"n": 42, "errors": 3}, "gate": {"passed": gain > 0, "reasons": []},
        "test": {"baseline": 0.4, "student": 0.4 + gain},
        "against_baseline": {"difference": gain, "low": gain - 0.01, "high": gain + 0.01},
        "seconds": 60.0, "commit": "c0ffee", "day": "2026-11-26",
    }  # fmt: skip


def test_a_bound_is_students_over_records() -> None:
    assert lower_bound([1.0, 2.0, 3.0]) == pytest.approx(2 - 2.919986 * 1 / math.sqrt(3), abs=1e-5)
    assert math.isnan(lower_bound([1.0]))


def test_a_note_says_what_is_missing_and_whether_the_aim_was_met() -> None:
    gains = [0.031, 0.024, 0.022, 0.028, 0.03, 0.027, 0.025, 0.02, 0.026]
    records = [record(k % 3, k // 3, gain) for k, gain in enumerate(gains)]
    whole = summarise(records, 9, [])
    assert "9 of 9 records (complete)" in whole and "9 of 9 positive" in whole and whole.count(": met.") == 1
    assert "| 1 | 0 | 40.0 | 42.4 | +2.40 (+1.40 .. +3.40) | 42 | 3 of 42 | passed |" in whole
    part = summarise(records[:2], 9, [])
    assert "2 of 9 records (INCOMPLETE)" in part and "met so far" in part
    worse = summarise([record(0, 0, -0.01), record(1, 0, 0.05)], 9, [])
    assert "NOT met" in worse and "1 of 2 positive" in worse and "mean +2.00" in worse
    control = {"task": "instance", "split": 0, "seed": 1, "control": "copies", "refused": False, "reasons": []}
    none = summarise([], 9, [control])
    assert "0 of 9 records" in none and "| instance | 0 | 1 | copies | **NOT refused** |" in none


def test_students_are_also_compared_with_models_that_looked_at_as_many_images() -> None:
    others = [
        {"task": "instance", "split": k, "seed": 0, "images_a_step": 16, "test": 0.41 + k / 100} for k in (0, 1, 2)
    ]
    said = summarise([record(0, 0, 0.03), record(1, 0, 0.03)], 9, [], others)
    assert "| instance | 0 | 0 | 16 | 41.0 | +2.00 |" in said and "| instance | 1 | 0 | 16 | 42.0 | +1.00 |" in said
    assert "| instance | 2 | 0 | 16 | 43.0 | - |" in said, "a record that is not there is compared with nothing"
    assert f"mean +1.50 over 2 records, lower bound {lower_bound([2.0, 1.0]):+.2f}." in said


def test_controls_break_a_loop_that_works() -> None:
    nothing = {**record(0, 0, 0.0), "accepted": {}}
    refused, passed = record(1, 0, -0.01), record(2, 0, 0.02)
    assert [each.split for each in settings_of_controls([nothing, refused, passed])] == [2]
    assert [each.split for each in settings_of_controls([nothing, refused])] == [1]
    assert [each.split for each in settings_of_controls([nothing])] == [0]


def test_records_cover_all_splits_first_and_are_whole_or_not_there(tmp_path: Path) -> None:
    names = [each.name for each in settings_of(parse(["--tasks", "semantic", "--splits", "2", "--seeds", "2"]))]
    assert [name.rsplit("-steps", 1)[0] for name in names] == [
        "semantic-split0-seed0", "semantic-split1-seed0", "semantic-split0-seed1", "semantic-split1-seed1",
    ]  # fmt: skip
    name = Setting("semantic", 0, 0, 5).name
    assert known_record(tmp_path, name) is None
    keep_record(tmp_path, name, record(0, 0, 0.1))
    assert known_record(tmp_path, name) == record(0, 0, 0.1)
    assert [path.name for path in (tmp_path / "records").iterdir()] == [f"{name}.json"]


def test_a_split_labels_some_of_the_pool_and_all_of_the_gate(tmp_path: Path) -> None:
    sizes = Sizes(pool=10, labelled=4, gate=3)
    truth = write_dataset(tmp_path / "pool", Digitscape("val", (32, 32), dense=False), 13, image_format="png")
    chosen = []
    for split in (0, 1):
        labels = json.loads(ensure_labels(tmp_path, split, sizes).read_text())
        ids = [image["id"] for image in labels["images"]]
        assert len(ids) == 7 and set(ids) >= {11, 12, 13}
        assert {each["image_id"] for each in labels["annotations"]} <= set(ids)
        chosen.append(ids)
    assert chosen[0] != chosen[1]
    assert len(json.loads(truth.read_text())["images"]) == 13


def test_scenes_on_their_heads_keep_their_truth(tmp_path: Path) -> None:
    truth = write_dataset(tmp_path / "pool", Digitscape("val", (48, 64), seed=3, dense=False), 3, image_format="png")
    flipped = write_on_their_heads(truth, 2, tmp_path / "other")
    before, after = (json.loads(path.read_text()) for path in (truth, flipped))
    assert len(after["images"]) == 2
    name = after["images"][0]["file_name"]
    upright, headlong = (np.asarray(Image.open(path.parent / name)) for path in (truth, flipped))
    assert (upright[::-1] == headlong).all()
    one, other = before["annotations"][0], after["annotations"][0]
    mask = coco_mask.decode(other["segmentation"])
    assert (coco_mask.decode(one["segmentation"])[::-1] == mask).all()
    rows, columns = np.nonzero(mask)
    x, y, width, height = other["bbox"]
    assert (x, y) == (columns.min(), rows.min()) and (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_instance_models_begin_from_a_detector_that_finds_and_outlines_but_cannot_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCATOR_SCENES", 4), ("LOCATOR_STEPS", 1)):
        monkeypatch.setattr(selftraining_data, name, value)
    recipe = TrainingRecipe.from_json(json.loads(recipe_of("instance", tmp_path, 10).read_text()))
    assert recipe.initial is not None and recipe.loop.steps == 10 and len(recipe.classes) == 10
    locator = load(recipe.initial)
    assert [each.name for each in locator.weights.classes] == ["digit"]
    adopted = adopt(
        create_model(recipe.architecture, **recipe.config), locator.model.state_dict(), recipe.initial_parts
    )
    assert {name.rpartition(".")[0] for name in adopted.new} == {
        "roi_heads.box.predictor.cls_score", "roi_heads.box.predictor.bbox_pred",
    }  # fmt: skip
    before = Path(recipe.initial).stat().st_mtime_ns
    recipe_of("instance", tmp_path, 20)
    assert Path(recipe.initial).stat().st_mtime_ns == before
